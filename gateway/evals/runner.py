"""Does the runs that wait, one at a time and behind interactive requests; what is done of a run is stored row by row.

A run is claimed with a lease, so that another server goes on when this one dies, with the rows that are not stored yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import msgspec

from tunery.gateway.api.evaluations.planning import Work, run_work
from tunery.gateway.api.schemas.responses import ChatCompletion
from tunery.gateway.api.state import Gateway
from tunery.gateway.evals.answer import answer_chat
from tunery.gateway.evals.row import evaluate_row
from tunery.plugins.evals.graders import Score
from tunery.plugins.evals.plan import RunPlan
from tunery.plugins.evals.results import ItemResult
from tunery.plugins.evals.statistics import RunSummary, summarize
from tunery.registry.errors import Conflict, LimitReached, StorageBusy, TuneryError, Unavailable
from tunery.registry.evals.claims import RunClaim
from tunery.registry.evals.records import EvalRun, Evaluation, Measurement
from tunery.registry.evals.store import LEASE_SECONDS
from tunery.registry.storage.work_watch import WorkWatch
from tunery.registry.usage.records import UsageRecord

__all__ = ["EvalRunner", "measured_of"]

log = logging.getLogger("tunery.gateway")

POLL_SECONDS = 0.5
"""Seconds between looks at whether a run waits."""
CLAIM_SECONDS = 5.0
"""Seconds after which runs are looked for although nothing has changed: a lease may have run out."""
LONGEST_PAUSE = 5.0

T = TypeVar("T")
Done = Callable[[int, int], None]
"""Called with the number of rows that are stored, and of all."""


class EvalRunner:
    """The runs of one gateway. At most `at_once` rows are evaluated together, by default a quarter of the engine's batch,
    and in the background: on what the engine has left, unless `alone` says that there is nobody else."""

    def __init__(
        self, gateway: Gateway, *, owner: str, at_once: int = 0, alone: bool = False, lease: float = LEASE_SECONDS
    ) -> None:
        self._gateway, self._owner, self._lease = gateway, owner, lease
        self._evals = gateway.registry.evals
        self._at_once, self._alone = at_once or max(1, gateway.settings.max_batch // 4), alone
        self._watch = WorkWatch(gateway.registry.changes, seconds=CLAIM_SECONDS)
        self._task: asyncio.Task[None] | None = None
        # Graders may compute for a while, so they share one thread and leave the others to requests.
        self._grading = ThreadPoolExecutor(1, "grading")

    def start(self) -> None:
        """Begin to look for runs."""
        self._task = asyncio.create_task(self._loop(), name="evaluations")

    async def stop(self) -> None:
        """Stop; a run that is under way waits for the next server."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._grading.shutdown(wait=False, cancel_futures=True)

    async def _loop(self) -> None:
        while True:
            try:
                while (run := await _in_thread(self._claim)) is not None:
                    await self.run(run)
            except TuneryError as error:
                log.warning("evaluations: %s", error.message)
                await asyncio.sleep(LONGEST_PAUSE)
            except Exception:
                log.exception("evaluations could not be looked for")
                await asyncio.sleep(LONGEST_PAUSE)
            await asyncio.sleep(POLL_SECONDS)

    def _claim(self) -> EvalRun | None:
        base = self._gateway.resolver.base.digest
        if self._gateway.draining or not self._watch.due():
            return None
        if self._evals.has_work(base, lease=self._lease) and (
            run := self._evals.claim(self._owner, base_digest=base, lease=self._lease)
        ):
            return run
        self._watch.found_nothing()
        return None

    async def run(self, run: EvalRun, *, done: Done = lambda stored, of: None) -> None:
        """Do the rest of a claimed run and record how it ended. Returns early when it was canceled or claimed again."""
        claim = RunClaim(run.id, run.fence)
        try:
            await self._together(self._renew(claim), self._work(run, claim, done))
        except asyncio.CancelledError:
            with contextlib.suppress(TuneryError):
                self._evals.release(claim)
            raise
        except Conflict as error:
            if error.code != "claim_lost":
                await self._fail(claim, error)
        except StorageBusy:
            # Another process holds the registry; what is evaluated is kept, and the run goes on later.
            with contextlib.suppress(TuneryError):
                await _in_thread(self._evals.release, claim)
        except TuneryError as error:
            await self._fail(claim, error)
        except Exception:
            log.exception("%s failed", run.id)
            await self._fail(claim, TuneryError("something went wrong here; the server's log says what"))

    async def _fail(self, claim: RunClaim, error: TuneryError) -> None:
        with contextlib.suppress(TuneryError):
            await _in_thread(self._evals.fail, claim, error=error.message, code=error.code)

    @staticmethod
    async def _together(renewing: Coroutine[Any, Any, None], working: Coroutine[Any, Any, None]) -> None:
        """Work until it is done or the claim cannot be renewed."""
        tasks = [asyncio.create_task(renewing), asyncio.create_task(working)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _renew(self, claim: RunClaim) -> None:
        while True:
            await asyncio.sleep(self._lease / 6)
            await _in_thread(self._evals.renew, claim, lease=self._lease)

    async def _work(self, run: EvalRun, claim: RunClaim, done: Done) -> None:
        plan = msgspec.convert(run.plan, RunPlan)
        evaluation, work = await _in_thread(self._read, run, plan)
        stored = await _in_thread(self._evals.positions, run.id)
        left = sorted(set(range(len(work.items))) - stored)
        count = len(work.items)
        done(count - len(left), count)
        await self._rows(
            left, plan, work, claim, lambda remaining: done(count - remaining, count), tenant=evaluation.tenant
        )
        summary = await _in_thread(self._summarize, run, plan, work)
        measured = [
            each
            for each in measured_of(run, plan, summary)
            # What others find is no part of the owner's version.
            if not self._gateway.shares.covers(evaluation.tenant, each.adapter)
        ]
        await _in_thread(self._evals.finish, claim, summary=msgspec.to_builtins(summary), measured=measured)

    def _read(self, run: EvalRun, plan: RunPlan) -> tuple[Evaluation, Work]:
        evaluation = self._evals.get(run.eval)
        formats = self._gateway.plugins.formats()
        path = self._evals.data_path(run)
        return evaluation, run_work(evaluation, plan, path, name=run.data_name, formats=formats)

    async def _rows(
        self,
        left: Iterable[int],
        plan: RunPlan,
        work: Work,
        claim: RunClaim,
        done: Callable[[int], None],
        *,
        tenant: str,
    ) -> None:
        """Evaluate and store the rows at these positions, some at once."""
        waiting = list(reversed(list(left)))
        remaining = len(waiting)

        async def work_off() -> None:
            nonlocal remaining
            while waiting:
                position = waiting.pop()
                usage: list[UsageRecord] = []
                ask = partial(self._ask, tenant=tenant, usage=usage)
                result = await evaluate_row(work.items[position], plan, work, ask=ask, offload=self._grade)
                await _in_thread(
                    self._evals.add_item,
                    claim,
                    position=position,
                    state=result.answers[0].state,
                    data=msgspec.to_builtins(result),
                )
                # Not before: a row that is not stored is asked again, and counts once.
                self._gateway.usage.add(*usage)
                remaining -= 1
                done(remaining)

        tasks = [asyncio.create_task(work_off()) for _ in range(min(self._at_once, remaining))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, body: dict[str, Any], *, tenant: str, usage: list[UsageRecord]) -> ChatCompletion:
        """The answer to a request, which is sent again while the engine cannot answer; raises LimitReached where the
        tenant has used up its month."""
        while True:
            while self._gateway.draining:
                await asyncio.sleep(POLL_SECONDS)
            try:
                return await answer_chat(
                    self._gateway, body, tenant=tenant, usage=usage, background=not self._alone
                )  # fmt: skip
            except Unavailable as error:
                if isinstance(error, LimitReached) and error.limit == "tokens_per_month":
                    raise
                await asyncio.sleep(min(float(error.retry_after), LONGEST_PAUSE))

    async def _grade(self, work: Callable[[], list[Score]]) -> list[Score]:
        return await asyncio.get_running_loop().run_in_executor(self._grading, work)

    def _summarize(self, run: EvalRun, plan: RunPlan, work: Work) -> RunSummary:
        return summarize(
            [msgspec.convert(item.data, ItemResult).figures for item in self._evals.all_items(run.id)],
            models=[(model.name, model.reference) for model in plan.models],
            graders=[grader.name for grader in work.graders],
        )


def measured_of(run: EvalRun, plan: RunPlan, summary: RunSummary) -> list[Measurement]:
    """What a run says of each version that it measured, for the version to keep."""
    measured: dict[tuple[str, int], Measurement] = {}
    for at, model in enumerate(plan.models):
        if model.adapter is None or model.number is None or model.digest is None:
            continue
        other = next((each for place, each in enumerate(plan.models) if place != at), None)
        results: dict[str, Any] = {"model": msgspec.to_builtins(summary.models[at])}
        # A difference is the first model's less the second's.
        results |= {"comparison": msgspec.to_builtins(summary.comparison)} if at == 0 and other else {}
        measured.setdefault(
            (model.adapter, model.number),
            Measurement(
                adapter=model.adapter,
                number=model.number,
                run=run.id,
                digest=model.digest,
                name=run.name,
                data_name=run.data_name,
                data_sha256=run.data_sha256,
                against=other.reference if other else None,
                results=results,
            ),
        )
    return list(measured.values())


async def _in_thread(work: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """As asyncio.to_thread, but where this is cancelled it ends only after the thread: the registry closes afterwards."""
    task = asyncio.create_task(asyncio.to_thread(work, *arguments, **options))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
