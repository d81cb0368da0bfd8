"""Admits inference requests within the limits of their tenant and key.

A request counts against both. What it may use at most is reserved before the engine hears of it, and what it did not use
is given back when it ends, however it ends. A request that is refused counts as none.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple

from tunery.gateway.tenancy.limits.book import LimitBook
from tunery.gateway.tenancy.limits.headers import limit_headers, refusal_headers
from tunery.gateway.tenancy.limits.interface import Counters, Resource, Shortage, Want
from tunery.gateway.tenancy.limits.reservation import Reservation
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.usage.month import month_end
from tunery.gateway.tenancy.usage.writer import UsageWriter
from tunery.registry.configuration.limits import Limits
from tunery.registry.errors import LimitReached

__all__ = ["Limiter"]

NAMES: dict[Resource, str] = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "concurrent": "concurrent_requests",
}
"""The limit of each resource."""
WORDS: dict[Resource, str] = {
    "requests": "requests per minute",
    "tokens": "tokens per minute",
    "concurrent": "concurrent requests",
}
HEADERS: tuple[Resource, ...] = ("requests", "tokens")


class Subject(NamedTuple):
    """Whose limits are checked: a tenant or a key."""

    name: str
    words: str
    limits: Limits
    tenant: str
    key: str | None


class Limiter:
    """The limits of one gateway's requests. `on_refused` is called with the name of each limit that refuses one."""

    def __init__(
        self, book: LimitBook, counters: Counters, usage: UsageWriter, *, on_refused: Callable[[str], None]
    ) -> None:
        self.book, self._counters, self._usage, self._on_refused = book, counters, usage, on_refused
        self._promised: Counter[str] = Counter()
        """Tokens of the month that are reserved, by subject."""

    async def start(self) -> None:
        """Begin to read limits and to count."""
        await self.book.start()
        await self._counters.start()

    async def stop(self) -> None:
        """Give back what is counted."""
        await self.book.stop()
        await self._counters.stop()

    def check(self, by: Principal, *, background: bool = False) -> None:
        """Raise LimitReached where not even the smallest request would be admitted, before it is read any further."""
        subjects = self._subjects(by)
        self._check_month(subjects, 1)
        if not background and (short := self._counters.shortage(_wants(subjects, 1))) is not None:
            raise self._refusal(short, subjects)

    @contextlib.asynccontextmanager
    async def admit(self, by: Principal, *, tokens: int, background: bool = False) -> AsyncIterator[Reservation]:
        """Count a request of at most so many tokens while the context lasts; raise LimitReached.

        One in the `background` counts against the tokens of the month only: it runs on what the others leave.
        """
        subjects = self._subjects(by)
        self._check_month(subjects, tokens)
        with self._promise(subjects, tokens):
            taken = await self._counters.take([] if background else _wants(subjects, tokens))
            if isinstance(taken, Shortage):
                raise self._refusal(taken, subjects)
            reservation = Reservation(self._counters, taken, tokens=tokens)
            try:
                yield reservation
            finally:
                reservation.settle()

    def headers(self, by: Principal) -> dict[str, str]:
        """OpenAI's headers, for the limits that there are."""
        headers: dict[str, str] = {}
        subjects = self._subjects(by)
        for resource in HEADERS:
            limited = [(each.name, limit) for each in subjects if (limit := getattr(each.limits, NAMES[resource]))]
            if limited:
                standings = [(limit, self._counters.standing(name, resource, limit)) for name, limit in limited]
                headers |= limit_headers(resource, standings)
        return headers

    def queue_share(self, tenant: str) -> float:
        """The share of all places that a tenant may have; 0 where that is not limited."""
        return self.book.of_tenant(tenant).queue_share

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count a refusal that is decided elsewhere, within the block, and say whether to try again."""
        try:
            yield
        except LimitReached as error:
            error.headers = refusal_headers(error.wait, retry=error.code != "insufficient_quota")
            self._on_refused(error.limit)
            raise

    def _subjects(self, by: Principal) -> list[Subject]:
        tenant = Subject(
            f"tenant:{by.tenant}", f"the tenant {by.tenant}", self.book.of_tenant(by.tenant), by.tenant, None
        )
        if by.key is None:
            return [tenant]
        limits = self.book.of_key(by.tenant, by.key)
        return [tenant, Subject(f"key:{by.key}", f"the API key {by.key}", limits, by.tenant, by.key)]

    def _check_month(self, subjects: list[Subject], tokens: int) -> None:
        for subject in subjects:
            limit = subject.limits.tokens_per_month
            if not limit:
                continue
            used = self._usage.month.used(subject.tenant, subject.key) + self._promised[subject.name]
            if used + tokens > limit:
                now = self._usage.now()
                error = LimitReached(
                    f"{subject.words} may use {limit} tokens a month; {used} are used or reserved, and this request may "
                    f"use {tokens}: lower max_tokens, or have the limit raised (tokens_per_month)",
                    limit="tokens_per_month",
                    wait=month_end(now) - now,
                    code="insufficient_quota",
                )
                error.headers = refusal_headers(error.wait, retry=False)
                self._on_refused(error.limit)
                raise error

    @contextlib.contextmanager
    def _promise(self, subjects: list[Subject], tokens: int) -> Iterator[None]:
        """Reserve tokens of the month while the context lasts, where they are limited."""
        names = [subject.name for subject in subjects if subject.limits.tokens_per_month]
        for name in names:
            self._promised[name] += tokens
        try:
            yield
        finally:
            for name in names:
                self._promised[name] -= tokens
                if not self._promised[name]:
                    del self._promised[name]

    def _refusal(self, short: Shortage, subjects: list[Subject]) -> LimitReached:
        want, wait = short.want, short.seconds
        subject = next(each for each in subjects if each.name == want.subject)
        left = ""
        if want.resource != "concurrent":
            standing = self._counters.standing(want.subject, want.resource, want.limit)
            left = f", {want.limit - standing.remaining} are used"
        asked = f" and this request may use {want.amount}" if want.resource == "tokens" else ""
        retry = "lower max_tokens or shorten the prompt" if wait is None else f"try again in {wait:.3g} s"
        error = LimitReached(
            f"Rate limit reached: {subject.words} may have {want.limit} {WORDS[want.resource]}{left}{asked}; {retry}",
            limit=NAMES[want.resource],
            wait=wait,
        )
        of_tenant = next(each for each in subjects if each.key is None)
        by = Principal(tenant=of_tenant.tenant, key=next((each.key for each in subjects if each.key), None))
        error.headers = self.headers(by) | refusal_headers(wait, retry=wait is not None)
        self._on_refused(error.limit)
        return error


def _wants(subjects: list[Subject], tokens: int) -> list[Want]:
    """What a request takes of the limits that there are."""
    wants = []
    for subject in subjects:
        limits = subject.limits
        if limits.requests_per_minute:
            wants.append(Want(subject.name, "requests", 1, limits.requests_per_minute))
        if limits.tokens_per_minute:
            wants.append(Want(subject.name, "tokens", tokens, limits.tokens_per_minute))
        if limits.concurrent_requests:
            wants.append(Want(subject.name, "concurrent", 1, limits.concurrent_requests))
    return wants
