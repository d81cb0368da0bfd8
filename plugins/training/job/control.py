"""Pause or cancel a running job from any process, through one small file in the job's folder.

A pause waits for the step to end and saves a checkpoint. A cancellation does not wait: it interrupts the process as
Ctrl-C does, and repeats that until the job ends, because an interruption that lands in a destructor or in a foreign
callback is lost.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tunery.plugins.training.folder import JobFolder, replace_file

__all__ = ["Control", "Request", "resume_advice", "signal_job", "watch"]

POLL_SECONDS = 0.2
POLLS_PER_INTERRUPT = 10
"""Polls after which a cancelled run that goes on regardless is interrupted once more."""

Request = Literal["pause", "cancel"]


def signal_job(folder: JobFolder, request: Request) -> None:
    """Tell the job to pause or to stop."""
    replace_file(folder.control, request.encode())


def resume_advice(job_id: str, folder: JobFolder, progress: str, repeats: str | None = None) -> str:
    """The message for a job that was cancelled at some `progress`, such as `after step 3 of 10`.

    A job that `repeats` a version is not resumed but started over.
    """
    if repeats:
        return f"{job_id} was cancelled {progress}; nothing was published: start over with tunery reproduce {repeats}"
    kept = folder.checkpoint.is_dir()
    checkpoint = "its last checkpoint is kept" if kept else "there is no checkpoint yet"
    advice = f"{'go on' if kept else 'start over'} with tunery train --resume {job_id}"
    return f"{job_id} was cancelled {progress}; nothing was published and {checkpoint}: {advice}"


class Control:
    """What this job has been requested to do so far."""

    def __init__(self, number: signal.Signals = signal.SIGINT) -> None:
        self._signal = number
        self._pausing, self._cancelled, self._ending = threading.Event(), threading.Event(), threading.Event()
        self._polls = 0

    @property
    def pausing(self) -> bool:
        """Whether to stop after this step, with a checkpoint."""
        return self._pausing.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether the job was requested to stop, whatever error that has become since."""
        return self._cancelled.is_set()

    def end(self) -> None:
        """Do not interrupt the job any more: it is ending."""
        self._ending.set()

    def poll(self, folder: JobFolder) -> None:
        """Read the control file and act on it."""
        try:
            request = folder.control.read_text()
        except OSError:
            return
        if request == "pause":
            self._pausing.set()
        elif request == "cancel" and not self._ending.is_set():
            self._cancelled.set()
            if self._polls % POLLS_PER_INTERRUPT == 0:
                _thread.interrupt_main(self._signal)
            self._polls += 1


@contextmanager
def watch(folder: JobFolder) -> Iterator[Control]:
    """A Control that a thread keeps up to date while the block runs; earlier requests are dropped."""
    folder.control.unlink(missing_ok=True)
    with _interruptible() as number:
        control, ended = Control(number), threading.Event()

        def run() -> None:
            while not ended.wait(POLL_SECONDS):
                control.poll(folder)

        thread = threading.Thread(target=run, name="job-control", daemon=True)
        thread.start()
        try:
            yield control
        finally:
            ended.set()
            thread.join()


@contextmanager
def _interruptible() -> Iterator[signal.Signals]:
    """The signal that interrupts this process: SIGINT, or SIGUSR1 where SIGINT is ignored, as in a
    shell script's background jobs."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield signal.SIGINT
        return
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        yield signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR1, before)
