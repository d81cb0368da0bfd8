"""Gates that misbehave; a process of their own imports them by name."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from tunery.plugins.training.gates import GateCase, Verdict, failed, passed, skipped
from tunery.registry.errors import InvalidInput


def passes(case: GateCase) -> Verdict:
    made = case.once("number", lambda: len(case.request.adapter))
    return passed("fine", process=float(os.getpid()), made=float(made))


def fails(case: GateCase) -> Verdict:
    return failed("not fine: do better", badness=2.0)


def skips(case: GateCase) -> Verdict:
    return skipped("cannot tell")


def refuses(case: GateCase) -> Verdict:
    raise InvalidInput("nothing to look at", code="odd_code")


def breaks(case: GateCase) -> Verdict:
    raise RuntimeError("my own fault")


def is_killed(case: GateCase) -> Verdict:
    sys.stderr.write("about to die\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    return passed("never said")


def hangs(case: GateCase) -> Verdict:
    Path(case.request.folder, "pid").write_text(str(os.getpid()))
    sys.stderr.write("waiting\n")
    sys.stderr.flush()
    time.sleep(600)
    return passed("never said")
