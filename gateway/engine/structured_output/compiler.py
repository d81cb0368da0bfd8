"""Compiling the grammars of requests on threads, beside the forward passes.

Each grammar is tried in a process with limits first, tenants take turns, equal grammars are compiled once, and one that
nobody waits for any more is given up.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tunery.gateway.engine.sampling_params import Constraint
from tunery.gateway.engine.structured_output.grammars import Grammars
from tunery.gateway.engine.structured_output.guide import Guide
from tunery.gateway.engine.structured_output.trial import Trial, TrialProcess
from tunery.registry.errors import InvalidInput, TuneryError, Unavailable

__all__ = ["GrammarCompiler"]

log = logging.getLogger("tunery.engine")

WORKERS, PER_TENANT = 8, 4
"""Grammars compiled at once: in all, and for one tenant. Next to hostile grammars a common one takes milliseconds;
queued behind them it would wait for seconds."""
MAX_REFUSED = 256
"""Grammars that cannot be compiled, remembered with their errors."""


@dataclass(eq=False)
class _Job:
    """A grammar to be compiled, and the futures that wait for it."""

    constraint: Constraint
    tenant: str
    waiting: list[Future[Guide]] = field(default_factory=list)
    trial: Trial | None = None

    @property
    def wanted(self) -> bool:
        """Whether a request still waits."""
        return any(not future.cancelled() for future in self.waiting)


class GrammarCompiler:
    """Turns constraints into guides. Its methods may be called from any thread."""

    def __init__(self, grammars: Grammars, trials: TrialProcess) -> None:
        self._grammars, self._trials = grammars, trials
        self._threads = ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="grammars")
        self._lock = threading.Lock()
        self._jobs: dict[Constraint, _Job] = {}
        self._queues: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._running: Counter[str] = Counter()
        self._refused: OrderedDict[Constraint, InvalidInput] = OrderedDict()

    def submit(self, tenant: str, constraint: Constraint) -> Future[Guide]:
        """Compile `constraint`: a guide for one request, at the start of its output.

        The future fails with InvalidInput (`invalid_constraint`), or with Unavailable when compiling broke.
        """
        future: Future[Guide] = Future()
        with self._lock:
            if (refusal := self._refused.get(constraint)) is not None:
                self._refused.move_to_end(constraint)
                future.set_exception(refusal.with_traceback(None))
                return future
            if (job := self._jobs.get(constraint)) is None:
                job = self._jobs[constraint] = _Job(constraint, tenant)
                self._queues.setdefault(tenant, deque()).append(job)
            job.waiting.append(future)
            self._start()
        return future

    def cancel(self, future: Future[Guide]) -> None:
        """The request of `future` is gone; a trial that no other request waits for is killed."""
        if not future.cancel():
            return
        with self._lock:
            job = next((job for job in self._jobs.values() if future in job.waiting), None)
            if job is None or job.wanted:
                return
            del self._jobs[job.constraint]
            queue = self._queues.get(job.tenant)
            if queue is not None and job in queue:
                queue.remove(job)
            if job.trial is not None:
                job.trial.kill()

    def close(self) -> None:
        """Stop compiling."""
        with self._lock:
            self._queues.clear()
            for job in self._jobs.values():
                if job.trial is not None:
                    job.trial.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._trials.close()

    def _start(self) -> None:
        """Start the jobs that may start, one tenant after another; the lock is held."""
        for tenant in list(self._queues):
            if sum(self._running.values()) >= WORKERS:
                return
            queue = self._queues[tenant]
            if queue and self._running[tenant] < PER_TENANT:
                self._running[tenant] += 1
                self._threads.submit(self._run, queue.popleft())
                self._queues.move_to_end(tenant)
            if not queue:
                del self._queues[tenant]

    def _run(self, job: _Job) -> None:
        error: TuneryError | None = None
        try:
            self._compile(job)
        except TuneryError as caught:
            error = caught
        except Exception:
            log.exception("a grammar could not be compiled")
            error = Unavailable("this grammar could not be compiled; try again, or see the engine's log")
        with self._lock:
            if self._jobs.get(job.constraint) is job:
                del self._jobs[job.constraint]
                if isinstance(error, InvalidInput):
                    self._refuse(job.constraint, error)
            self._running[job.tenant] -= 1
            self._running += Counter()  # drops zeros
            self._start()
        for future in job.waiting:
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if error is not None:
                    raise error
                future.set_result(self._grammars.start(job.constraint))
            except TuneryError as caught:
                future.set_exception(caught.with_traceback(None))

    def _compile(self, job: _Job) -> None:
        """Try the grammar unless it is cached, then compile it here."""
        if self._grammars.is_cached(job.constraint):
            return
        trial = self._trials.begin(job.constraint)
        with self._lock:
            job.trial = trial
            if not job.wanted:
                trial.kill()
        size = trial.result()
        if job.wanted:
            self._grammars.compile(job.constraint, size=size)

    def _refuse(self, constraint: Constraint, error: InvalidInput) -> None:
        error.__cause__ = error.__context__ = None
        self._refused[constraint] = error
        if len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)
