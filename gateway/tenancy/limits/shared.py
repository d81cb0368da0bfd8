"""Counters that several gateways share, in the registry's database or in Redis.

A gateway claims a sixteenth of a limit at a time, admits requests from that without asking, and gives back what is left
when the slot is over: together the gateways never admit more than the limit. Claims that come while others are asked
for go together. While nobody answers, each gateway counts for itself, so that together they admit up to as many times
the limit as there are gateways, and none keeps its requests waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from tunery.gateway.tenancy.limits.interface import Resource, Shortage, Standing, Taken, Want
from tunery.gateway.tenancy.limits.memory import SOON, MemoryCounters
from tunery.registry.limits.counters import HOLD_SECONDS, Claim, Exchange, Exchanged, Granted, Hold, Return
from tunery.registry.limits.window import SlidingWindow, slot_of

__all__ = ["SharedCounters", "Shop"]

log = logging.getLogger("tunery.gateway")

PARTS = 16
"""A claim is for this part of a limit, or for what is needed."""
WAIT_SECONDS = 1.0
"""Seconds that a request waits for the others' answer, after which this gateway counts for itself."""
UPKEEP_SECONDS = 1.0
REFUSED_SECONDS = 0.2
"""Seconds for which a refusal is repeated without asking again, as far as the window does not open before."""

Place = tuple[str, str]
"""A subject and a resource."""


class Shop(Protocol):
    """Who counts for all."""

    def now(self) -> float:
        """The time that counts, in seconds."""

    def exchange(self, asked: Exchange) -> Exchanged:
        """Give back, claim and hold; called in a thread. Raises whatever keeps it from answering."""


class _Block(msgspec.Struct):
    """What is left of what was claimed in a slot."""

    slot: int
    left: int


class _Asked(msgspec.Struct):
    """A want that waits for its answer: what was taken, False where it was refused, None where nobody answers."""

    want: Want
    answer: asyncio.Future[Taken | Literal[False] | None]


class SharedCounters:
    """See Counters."""

    def __init__(self, shop: Shop) -> None:
        self._shop, self._owner = shop, uuid.uuid4().hex
        self._own = MemoryCounters(clock=shop.now)
        self._blocks: dict[Place, _Block] = {}
        self._windows: dict[Place, SlidingWindow] = {}
        """What all gateways have used, as it was at the last claim."""
        self._refused: dict[Place, tuple[float, float]] = {}
        """When a claim was refused, and what for."""
        self._running: Counter[str] = Counter()
        self._held: dict[str, tuple[int, int]] = {}
        """Concurrent requests that are held, and their limit, by subject."""
        self._renewed = 0.0
        self._asked: list[_Asked] = []
        self._returns: list[Return] = []
        self._wake = asyncio.Event()
        self._alone = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See Counters."""
        try:
            await asyncio.to_thread(self._shop.exchange, Exchange(owner=self._owner, now=self._shop.now()))
        except Exception as error:
            self._go_alone(error)
        self._task = asyncio.create_task(self._run(), name="limit counters")

    async def stop(self) -> None:
        """See Counters."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for place in tuple(self._blocks):
            self._return_block(place)
        self._running.clear()
        with contextlib.suppress(Exception):
            await asyncio.to_thread(self._shop.exchange, self._exchange([], holds=self._holds({})))

    def shortage(self, wants: Sequence[Want]) -> Shortage | None:
        """See Counters: what was refused a moment ago."""
        if self._alone:
            return self._own.shortage(wants)
        now = self._shop.now()
        for want in wants:
            at, amount = self._refused.get((want.subject, want.resource), (0.0, 0))
            if now - at < REFUSED_SECONDS and want.amount >= amount:
                return Shortage(want, self._seconds(want, now))
        return None

    async def take(self, wants: Sequence[Want]) -> list[Taken] | Shortage:
        """See Counters."""
        if (shortage := self.shortage(wants)) is not None:
            return shortage
        waiting = [got if (got := self._take_here(want)) is not None else self._ask(want) for want in wants]
        taken: list[Taken] = []
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                for want, each in zip(wants, waiting, strict=True):
                    taken.append(each if isinstance(each, Taken) else await self._answered(want, each))
        except TimeoutError:
            self._go_alone("they do not answer")
            self._undo(waiting, taken)
            return await self._take_alone(wants)
        except _Refused as refused:
            self._undo(waiting, taken)
            return refused.shortage
        except BaseException:
            self._undo(waiting, taken)
            raise
        return taken

    def give_back(self, taken: Taken, amount: int) -> None:
        """See Counters."""
        want = taken.want
        if taken.alone:
            self._own.give_back(taken, amount)
        elif want.resource == "concurrent":
            self._running[want.subject] -= amount
        elif (block := self._blocks.get((want.subject, want.resource))) is not None and block.slot == taken.slot:
            block.left += amount
        else:
            self._returns.append(Return(want.subject, want.resource, taken.slot, amount))

    def standing(self, subject: str, resource: Resource, limit: int) -> Standing:
        """See Counters."""
        if self._alone:
            return self._own.standing(subject, resource, limit)
        now, window = self._shop.now(), self._windows.get((subject, resource))
        if window is None:
            return Standing(limit, 0.0)
        block = self._blocks.get((subject, resource))
        return Standing(max(0, limit - window.used(now) + (block.left if block else 0)), window.empty_in(now))

    # -- one want ------------------------------------------------------------------------------------------------------

    def _take_here(self, want: Want) -> Taken | None:
        """Take from what this gateway has claimed, if that is enough."""
        place = want.subject, want.resource
        if want.resource == "concurrent":
            if self._running[want.subject] + want.amount > self._held.get(want.subject, (0, 0))[0]:
                return None
            self._running[want.subject] += want.amount
            return Taken(want)
        block = self._block(place)
        if block is None or block.left < want.amount:
            return None
        block.left -= want.amount
        return Taken(want, block.slot)

    def _ask(self, want: Want) -> _Asked:
        asked = _Asked(want, asyncio.get_running_loop().create_future())
        if self._alone:
            asked.answer.set_result(None)
        elif want.amount > want.limit:
            asked.answer.set_result(False)
        else:
            self._asked.append(asked)
            self._wake.set()
        return asked

    async def _answered(self, want: Want, asked: _Asked) -> Taken:
        """What a want that was asked for got; raise _Refused."""
        answer = await asked.answer
        if answer is None:
            got = await self._take_alone((want,))
            if isinstance(got, Shortage):
                raise _Refused(got)
            return got[0]
        if answer is False:
            raise _Refused(self._refuse(want))
        return answer

    async def _take_alone(self, wants: Sequence[Want]) -> list[Taken] | Shortage:
        got = await self._own.take(wants)
        return got if isinstance(got, Shortage) else [msgspec.structs.replace(each, alone=True) for each in got]

    def _undo(self, waiting: Sequence[Taken | _Asked], taken: Sequence[Taken]) -> None:
        """Give everything back that was taken, and take nothing that was asked for."""
        for each in taken:
            self.give_back(each, each.want.amount)
        for place in waiting[len(taken) :]:
            if isinstance(place, Taken):
                self.give_back(place, place.want.amount)
            elif not place.answer.cancel() and not place.answer.cancelled() and place.answer.result():
                got = place.answer.result()
                assert got  # noqa: S101 - for the type checker
                self.give_back(got, got.want.amount)

    def _refuse(self, want: Want) -> Shortage:
        now = self._shop.now()
        self._refused[want.subject, want.resource] = now, want.amount
        return Shortage(want, self._seconds(want, now))

    def _seconds(self, want: Want, now: float) -> float | None:
        """Seconds until a want may be granted, as far as is known; None for one that never will be."""
        if want.amount > want.limit:
            return None
        window = self._windows.get((want.subject, want.resource))
        return (window.wait(want.amount, want.limit, now) if window else 0.0) or SOON

    def _block(self, place: Place) -> _Block | None:
        """What was claimed and is still good: a block ends with its slot."""
        block = self._blocks.get(place)
        if block is not None and block.slot != slot_of(self._shop.now()):
            self._return_block(place)
            return None
        return block

    def _return_block(self, place: Place) -> None:
        block = self._blocks.pop(place)
        if block.left:
            self._returns.append(Return(*place, block.slot, block.left))

    # -- the exchange --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UPKEEP_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            for place in tuple(self._blocks):
                self._block(place)
            asked, self._asked = [each for each in self._asked if not each.answer.done()], []
            exchange = self._exchange(asked)
            if not (asked or exchange.returns or exchange.holds or self._alone):
                continue
            self._returns = []
            try:
                exchanged = await asyncio.to_thread(self._shop.exchange, exchange)
            except Exception as error:
                self._returns = [*exchange.returns, *self._returns]
                self._go_alone(error)
                for each in asked:
                    if not each.answer.done():
                        each.answer.set_result(None)
                continue
            self._alone = False
            self._settle(asked, exchange, exchanged)

    def _go_alone(self, why: object) -> None:
        if not self._alone:
            log.warning("limits cannot be counted together now, each gateway counts for itself: %s", why)
        self._alone = True

    def _exchange(self, asked: Sequence[_Asked], *, holds: list[Hold] | None = None) -> Exchange:
        needs: Counter[tuple[str, str, int]] = Counter()
        for each in asked:
            needs[each.want.subject, each.want.resource, each.want.limit] += each.want.amount
        claims = [
            Claim(subject, resource, need, max(need, limit // PARTS), limit)
            for (subject, resource, limit), need in sorted(needs.items())
            if resource != "concurrent"
        ]
        if holds is None:
            holds = self._holds({place: need for place, need in needs.items() if place[1] == "concurrent"})
        # Some may fit where all together do not.
        return Exchange(
            owner=self._owner,
            now=self._shop.now(),
            claims=[msgspec.structs.replace(claim, need=1) for claim in claims],
            returns=self._returns,
            holds=holds,
        )

    def _holds(self, needs: dict[tuple[str, str, int], int]) -> list[Hold]:
        """What to hold: for those that ask, for those that are to be held on, and less for those that hold too much."""
        now = self._shop.now()
        renewing = now - self._renewed > HOLD_SECONDS / 3
        self._renewed = now if renewing else self._renewed
        holds = []
        for (subject, _, limit), need in sorted(needs.items()):
            running = self._running[subject]
            holds.append(Hold(subject, running + 1, running + max(need, limit // PARTS), limit))
        asked = {subject for subject, _, _ in needs}
        for subject, (held, limit) in tuple(self._held.items()):
            running = self._running[subject]
            if subject not in asked and (renewing or held > running):
                # What is given up is not used from now on.
                self._held[subject] = running, limit
                holds.append(Hold(subject, 0, running, max(limit, running)))
        return holds

    def _settle(self, asked: Sequence[_Asked], exchange: Exchange, exchanged: Exchanged) -> None:
        """Take in what was granted, and answer, first come first served."""
        for claim, granted in zip(exchange.claims, exchanged.claims, strict=True):
            self._settle_claim(claim, granted, slot_of(exchange.now))
        for hold, held in zip(exchange.holds, exchanged.holds, strict=True):
            self._held[hold.subject] = held, hold.limit
            if not held and not self._running[hold.subject]:
                del self._held[hold.subject], self._running[hold.subject]
        for each in asked:
            if not each.answer.done():
                self._answer(each, slot_of(exchange.now))

    def _settle_claim(self, claim: Claim, granted: Granted, slot: int) -> None:
        place = claim.subject, claim.resource
        self._windows[place] = SlidingWindow(granted.slots)
        block = self._blocks.get(place)
        if block is not None and block.slot != slot:
            self._return_block(place)
            block = None
        if block is None:
            self._blocks[place] = _Block(slot, granted.amount)
        else:
            block.left += granted.amount

    def _answer(self, asked: _Asked, slot: int) -> None:
        """Take what was asked for from what has been claimed; ask again where the slot is over meanwhile."""
        got = self._take_here(asked.want)
        if got is None and slot != slot_of(self._shop.now()):
            self._asked.append(asked)
            self._wake.set()
        else:
            asked.answer.set_result(got or False)


class _Refused(Exception):
    """A want was refused."""

    def __init__(self, shortage: Shortage) -> None:
        super().__init__()
        self.shortage = shortage
