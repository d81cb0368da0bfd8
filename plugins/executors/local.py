"""Run each job in a process on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

from tunery.plugins.executors.executor import Assignment
from tunery.registry.errors import StorageFailed, disk_code

__all__ = ["LocalExecutor", "LocalJob"]


class LocalJob:
    """A process on this machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """The process's exit code, None while it runs; negative for the signal that killed it."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask the process to give its job back to the queue, with a checkpoint. Returns at once."""
        self._process.terminate()

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.wait()


class LocalExecutor:
    """Starts processes on this machine. What they print is in the job's folder, in `process.log`."""

    def start(self, assignment: Assignment) -> LocalJob:
        """Start the process; raise StorageFailed when there is no room for its log."""
        claim = assignment.claim
        command = [sys.executable, "-m", "tunery.plugins.training.queued.process", claim.job, str(claim.fence)]
        folder = assignment.home / "jobs" / claim.job
        environment = os.environ | {"TUNERY_HOME": str(assignment.home)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "process.log").open("ab") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
                )
        except OSError as error:
            raise StorageFailed(
                f"the process of {claim.job} could not be started: {error.strerror}", code=disk_code(error)
            ) from error
        return LocalJob(process)
