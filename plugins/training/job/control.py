"""Owns telling a running job to pause or to stop, from any process, through one small file in the job's folder.

A pause waits for the step to end and keeps a checkpoint. A cancellation does not wait: it interrupts the process as Ctrl-C does, and
again until the run has taken notice, because an interruption that lands in a destructor or a foreign callback is lost.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

__all__ = ["Control", "ask", "how_to_go_on", "watch"]

FILE = "control"
EVERY = 0.2
"""Seconds between looks."""
AGAIN = 10
"""Looks after which a run that goes on as if nothing had happened is interrupted once more."""

Wish = Literal["pause", "cancel"]


def ask(folder: Path, wish: Wish) -> None:
    """Ask the job whose folder this is to pause or to stop."""
    staged = folder / f"{FILE}.new"
    staged.write_text(wish)
    staged.replace(folder / FILE)


def how_to_go_on(job: str, folder: Path, where: str, repeats: str | None = None) -> str:
    """What to tell who cancelled a job `where` it was, such as `after step 3 of 10`; one that `repeats` a version is not resumed."""
    if repeats:
        return f"{job} was cancelled {where}; nothing was published: start over with tunery reproduce {repeats}"
    kept = (folder / "checkpoint").is_dir()
    there = "its last checkpoint is kept" if kept else "there is no checkpoint yet"
    how = f"{'go on' if kept else 'start over'} with tunery train --resume {job}"
    return f"{job} was cancelled {where}; nothing was published and {there}: {how}"


class Control:
    """What was asked of this job so far."""

    def __init__(self, number: signal.Signals = signal.SIGINT) -> None:
        self._signal = number
        self._pausing, self._cancelled, self._ending = threading.Event(), threading.Event(), threading.Event()
        self._looks = 0

    @property
    def pausing(self) -> bool:
        """Whether to stop at the end of this step, with a checkpoint."""
        return self._pausing.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether the run was asked to stop, whatever the interruption became on its way up."""
        return self._cancelled.is_set()

    def end(self) -> None:
        """The run is ending: nothing interrupts it any more."""
        self._ending.set()

    def look(self, folder: Path) -> None:
        """Take up what is asked now."""
        try:
            wish = (folder / FILE).read_text()
        except OSError:
            return
        if wish == "pause":
            self._pausing.set()
        elif wish == "cancel" and not self._ending.is_set():
            self._cancelled.set()
            if self._looks % AGAIN == 0:
                _thread.interrupt_main(self._signal)
            self._looks += 1


@contextmanager
def watch(folder: Path) -> Iterator[Control]:
    """A control that looks at `folder` in a thread of its own while the block runs; what was asked before is forgotten."""
    (folder / FILE).unlink(missing_ok=True)
    with _interruptible() as number:
        control, ended = Control(number), threading.Event()

        def run() -> None:
            while not ended.wait(EVERY):
                control.look(folder)

        thread = threading.Thread(target=run, name="job-control", daemon=True)
        thread.start()
        try:
            yield control
        finally:
            ended.set()
            thread.join()


@contextmanager
def _interruptible() -> Iterator[signal.Signals]:
    """The signal that interrupts this process: SIGINT, or SIGUSR1 where that is ignored, as it is in what a script runs behind itself."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield signal.SIGINT
        return
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        yield signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR1, before)
