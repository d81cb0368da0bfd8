"""The worker: claims jobs from the queue, has an executor run them, and gives back those whose process died."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable

from tunery.plugins.executors.executor import Assignment, Executor, RunningJob
from tunery.plugins.runtime.machine_memory import usable_memory
from tunery.registry.configuration.settings import JobsSettings
from tunery.registry.errors import Conflict, TuneryError
from tunery.registry.jobs.queue import Claim, ClaimLimits
from tunery.registry.records import Job
from tunery.registry.registry import Registry
from tunery.registry.storage.work_watch import WorkWatch

__all__ = ["Worker"]

log = logging.getLogger("tunery.jobs")

POLL_SECONDS = 0.25
"""Seconds between looks at the processes, and at whether the registry has changed."""
CLAIM_SECONDS = 5.0
"""Seconds after which the queue is looked at although nothing has changed: a lease may have run out."""
STOP_SECONDS = 60.0
"""Seconds that jobs may take to write a checkpoint when the worker stops."""
EXPIRE_SECONDS = 60.0
"""Seconds between looks for uploaded files whose time is over."""
BACK_OFF_SECONDS = 5.0
"""Seconds for which a job that this worker gave back is left to others."""


class Worker:
    """Runs up to `settings.concurrency` jobs at once. `say` is called with a line for each job that starts or ends."""

    def __init__(
        self, registry: Registry, executor: Executor, settings: JobsSettings, *, say: Callable[[str], None]
    ) -> None:
        self._registry, self._executor, self._settings, self._say = registry, executor, settings, say
        self.name = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self._running: dict[Claim, RunningJob] = {}
        self._given_back: dict[str, float] = {}
        self._stopping = threading.Event()
        self._watch = WorkWatch(registry.changes, seconds=CLAIM_SECONDS)
        self._expired = float("-inf")

    def stop(self) -> None:
        """Make `run` give the jobs back and return."""
        self._stopping.set()

    def run(self) -> None:
        """Claim and run jobs until `stop` is called."""
        while not self._stopping.wait(POLL_SECONDS):
            try:
                self._reap()
                self._expire_files()
                while len(self._running) < self._settings.concurrency and self._watch.due() and self._start_next():
                    """Start as many as there is room for."""
            except TuneryError as error:
                log.warning("the queue cannot be read now: %s", error)
            except Exception:
                # An executor is a plugin, which may raise anything; the other jobs still need their worker.
                log.exception("the worker failed, and goes on")
        self._give_all_back()

    def _expire_files(self) -> None:
        """Forget uploaded files whose time is over, now and then."""
        now = time.monotonic()
        if now - self._expired > EXPIRE_SECONDS:
            self._expired = now
            self._registry.data_files.expire()

    def _start_next(self) -> bool:
        """Claim a job and start its process; False when there is none."""
        now = time.monotonic()
        self._given_back = {job: until for job, until in self._given_back.items() if until > now}
        limits = ClaimLimits(
            per_tenant=self._settings.per_tenant, memory=self._free_memory(), without=list(self._given_back)
        )
        job = self._registry.queue.claim(self.name, limits=limits)
        if job is None:
            self._watch.found_nothing()
            return False
        self._start(job, Claim(job.id, job.fence))
        return True

    def _free_memory(self) -> int:
        """Bytes that another job may use: what is free, and what the other jobs leave of the limit."""
        limit = int(self._settings.memory_gb * 1e9)
        others = sum(self._registry.queue.reserved(self.name).values()) if limit else 0
        return min(usable_memory(), limit - others) if limit else usable_memory()

    def _start(self, job: Job, claim: Claim) -> None:
        try:
            self._running[claim] = self._executor.start(Assignment(job, claim, self._registry.home.root))
            self._say(f"{job.id} ({job.trainer}, {job.adapter}) starts")
        except TuneryError as error:
            log.warning("%s", error)
            self._give_back(claim, error.message)

    def _reap(self) -> None:
        """Look at the processes, and give back the jobs of those that died."""
        for claim, process in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[claim]
            if code == 0:
                job = self._registry.job(claim.job)
                self._say(f"{job.id} {job.state}" + (f": {job.adapter}@{job.version}" if job.version else ""))
            else:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                self._give_back(claim, f"the process that ran it {how}", crashed=True)

    def _give_back(self, claim: Claim, why: str, *, crashed: bool = False) -> None:
        self._given_back[claim.job] = time.monotonic() + BACK_OFF_SECONDS
        try:
            job = self._registry.queue.release(claim, waiting=why, crashed=crashed)
            self._say(f"{claim.job} is {job.state}: {why}")
        except Conflict:
            """It is another worker's by now, or has ended."""

    def _give_all_back(self) -> None:
        """Let every process write its checkpoint and give its job back; kill those that take too long."""
        for process in self._running.values():
            process.stop()
        deadline = time.monotonic() + STOP_SECONDS
        while self._running and time.monotonic() < deadline:
            self._reap()
            time.sleep(POLL_SECONDS)
        for claim, process in self._running.items():
            process.kill()
            self._give_back(claim, "its worker stopped; it goes on from its checkpoint")
        self._running.clear()
