"""The process that trains one job from the queue: `python -m tunery.plugins.training.queued.process JOB FENCE`.

It goes on from the job's checkpoint when there is one. SIGTERM gives the job back to the queue, with a checkpoint. The
process ends at once, without a word, when its claim is another worker's: then nothing it does counts any more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.plugins.runtime.parent_watch import die_with_parent
from tunery.plugins.runtime.quick_exit import exit_quickly
from tunery.registry.configuration.settings import read_settings
from tunery.registry.home import Home
from tunery.registry.jobs.queue import Claim

if TYPE_CHECKING:
    from tunery.plugins.events import Cancelled, Failed, JobEvent, Paused
    from tunery.registry.records import Job
    from tunery.registry.registry import Registry

__all__ = ["CLAIM_LOST", "main"]

CLAIM_LOST = 3
"""The exit code of a process whose claim is another worker's."""

log = logging.getLogger("tunery.jobs")


def main(arguments: Sequence[str]) -> int:
    """Train a job; returns 0 when its end is recorded, whatever that is."""
    die_with_parent()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    home, (job_id, fence) = Home.from_env(), arguments
    settings = read_settings(home.root)
    _step_back(settings.jobs.nice)

    from tunery.plugins.runtime.compute import prepare_compute
    from tunery.registry.registry import Registry

    prepare_compute(settings.jobs.threads)
    with Registry.open(home) as registry:
        return _Run(registry, Claim(job_id, int(fence)), memory=int(settings.jobs.memory_gb * 1e9)).run()


def _step_back(nice: int) -> None:
    """Leave the processor to others.

    Where Linux groups processes by session (sched_autogroup, sched(7)), niceness only counts within a group, and the
    group has one of its own: this process leads a session, so the group is its.
    """
    os.nice(nice)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(nice))


class _Run:
    """One claimed job in this process; the jobs of its worker may use `memory` bytes together, 0 for what is free."""

    def __init__(self, registry: Registry, claim: Claim, *, memory: int) -> None:
        from tunery.plugins.training.folder import JobFolder
        from tunery.plugins.training.queued.reporter import Reporter

        self.registry, self.claim, self.memory = registry, claim, memory
        self.folder = JobFolder(registry.home.jobs / claim.job)
        self.reporter = Reporter(registry, claim)
        self.yielding = threading.Event()
        """Whether the job goes back to the queue instead of being paused."""
        self.ended = False

    def run(self) -> int:
        """Train, and record the end."""
        from tunery.plugins.training.queued.heartbeat import heartbeat
        from tunery.registry.errors import Conflict, StorageFailed

        self.folder.path.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, lambda *_: self._give_back())
        with heartbeat(self.registry, self.claim, on_wanted=self._ask, on_lost=self._leave_if_lost):
            try:
                self._train()
            except Conflict as error:
                if error.code == "claim_lost":
                    return CLAIM_LOST
                raise
            except StorageFailed as error:
                # As on a full disk. Another process goes on with the job when the lease has run out.
                log.error("what has become of %s could not be recorded: %s", self.claim.job, error)
                return 1
        return 0

    def _train(self) -> None:
        """Train, and record an error that came before anything else could record it."""
        from tunery.plugins.events import Cancelled, Failed
        from tunery.registry.errors import JobPaused, TuneryError

        try:
            self._launch()
        except (KeyboardInterrupt, JobPaused):
            self.end(Cancelled(error="The job was cancelled"))
        except TuneryError as error:
            if error.code == "claim_lost":
                raise
            if error.code == "job_running":
                # An earlier worker's process has not noticed yet that its claim is lost.
                self.registry.queue.release(self.claim, waiting=error.message)
                return
            self.end(Failed(error=error.message, code=error.code))
        except Exception as error:
            log.exception("%s failed", self.claim.job)
            self.end(Failed(error=f"{type(error).__name__}: {error}", code="internal_error"))

    def _launch(self) -> None:
        from tunery.plugins.discovery import load_plugins
        from tunery.plugins.parameters import read_parameters
        from tunery.plugins.training.job import launcher
        from tunery.plugins.training.job.launcher import QueuedJob
        from tunery.plugins.training.job.ledger import ClaimedJob
        from tunery.plugins.training.job.shortages import shortage_explained
        from tunery.plugins.training.queued.inputs import local_request
        from tunery.plugins.training.queued.success import success_of
        from tunery.plugins.training.queued.tracking import Tracking

        plugins = load_plugins()
        job = self.registry.job(self.claim.job)
        success = success_of(job, self.claim)
        queued = QueuedJob(
            job,
            ClaimedJob(self.registry, success, on_flush=self.reporter.flush, on_end=self.end),
            memory_limit=self._memory_limit(job),
        )
        tracking = Tracking(job, plugins, report=lambda note: self.registry.queue.report(self.claim, [note]))

        def on_event(event: JobEvent) -> None:
            self.reporter(event)
            tracking(event)

        shared: dict[str, Any] = {
            "registry": self.registry, "plugins": plugins, "on_event": on_event, "queued": queued,
        }  # fmt: skip
        with shortage_explained(job.id):
            if self.folder.manifest.exists():
                launcher.resume(job.id, **shared)
            else:
                request = local_request(self.registry, job, self.folder)
                parameters = read_parameters(plugins.trainer(request.trainer).parameters, request.parameters)
                launcher.train(request, parameters, **shared)

    def end(self, event: Paused | Cancelled | Failed) -> None:
        """Record how the job ended without a version, once; or give it back."""
        if self.ended:
            return
        self.ended = True
        try:
            self._record(event)
        except BaseException:
            self.ended = False
            raise

    def _record(self, event: Paused | Cancelled | Failed) -> None:
        import msgspec

        from tunery.plugins.events import Failed
        from tunery.plugins.training.queued.reporter import note_of
        from tunery.plugins.training.queued.wording import queued_wording

        self.reporter.flush()
        wanted = self.registry.job(self.claim.job).wanted
        if self.yielding.is_set() and wanted is None and not isinstance(event, Failed):
            self.registry.queue.release(self.claim, waiting="its worker stopped; it goes on from its checkpoint")
            return
        if isinstance(event, Failed) and self._waits_for_memory(event):
            return
        event = msgspec.structs.replace(event, error=queued_wording(event.error, self.folder))
        code = event.code if isinstance(event, Failed) else None
        self.registry.queue.finish(self.claim, event.kind, error=event.error, code=code or None, notes=[note_of(event)])

    def _memory_limit(self, job: Job) -> int | None:
        """What the limit leaves beside the worker's other jobs, None without a limit."""
        if not self.memory:
            return None
        reserved = self.registry.queue.reserved(job.owner or "")
        return max(self.memory - sum(size for other, size in reserved.items() if other != job.id), 1)

    def _waits_for_memory(self, event: Failed) -> bool:
        """Give the job back when it failed for want of memory that may be there later; a worker claims it then."""
        from tunery.plugins.runtime.machine_memory import SPARE, total_memory

        most = min(self.memory or sys.maxsize, int(SPARE * total_memory()))
        needed = event.needed_bytes
        if not isinstance(needed, int) or needed > most:
            return False
        self.registry.queue.report(self.claim, [], progress={"needed_bytes": needed})
        self.registry.queue.release(
            self.claim, waiting=f"it needs {needed / 1e9:.2f} GB of memory, which other jobs and servers use now"
        )
        return True

    def _leave_if_lost(self) -> None:
        """End this process at once, unless the claim is only over because the job's end has just been recorded here."""
        job = self.registry.job(self.claim.job)
        if not self.ended and (job.state != "succeeded" or job.fence != self.claim.fence):
            os._exit(CLAIM_LOST)

    def _ask(self, wanted: str) -> None:
        from tunery.plugins.training.job.control import signal_job

        signal_job(self.folder, "pause" if wanted == "pause" else "cancel")

    def _give_back(self) -> None:
        from tunery.plugins.training.job.control import signal_job

        self.yielding.set()
        signal_job(self.folder, "pause")


if __name__ == "__main__":
    exit_quickly()
    raise SystemExit(main(sys.argv[1:]))
