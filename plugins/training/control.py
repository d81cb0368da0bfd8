"""Owns telling a running job to pause or to stop, from any process, through one small file in the job's folder.

A pause waits for the step to end and keeps a checkpoint. A cancellation does not wait: it interrupts the process as Ctrl-C does.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

__all__ = ["Control", "ask", "watch"]

FILE = "control"
EVERY = 0.2
"""Seconds between looks."""

Wish = Literal["pause", "cancel"]


def ask(folder: Path, wish: Wish) -> None:
    """Ask the job whose folder this is to pause or to stop."""
    staged = folder / f"{FILE}.new"
    staged.write_text(wish)
    staged.replace(folder / FILE)


class Control:
    """What was asked of this job so far."""

    def __init__(self) -> None:
        self._pausing, self._cancelled = threading.Event(), threading.Event()

    @property
    def pausing(self) -> bool:
        """Whether to stop at the end of this step, with a checkpoint."""
        return self._pausing.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether the interruption that comes was asked for."""
        return self._cancelled.is_set()

    def look(self, folder: Path) -> None:
        """Take up what is asked now."""
        try:
            wish = (folder / FILE).read_text()
        except OSError:
            return
        if wish == "pause":
            self._pausing.set()
        elif wish == "cancel" and not self.cancelled:
            self._cancelled.set()
            _thread.interrupt_main()


@contextmanager
def watch(folder: Path) -> Iterator[Control]:
    """A control that looks at `folder` in a thread of its own while the block runs; what was asked before is forgotten."""
    (folder / FILE).unlink(missing_ok=True)
    control, ended = Control(), threading.Event()

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
