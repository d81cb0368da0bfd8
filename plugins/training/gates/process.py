"""Owns the process that asks the gates: `python -m tunery.plugins.training.gates.process REQUEST.json RESULTS.jsonl`.

Each verdict is written as soon as it is there, so that whoever waits knows how far the process came if it dies.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tunery.plugins.runtime.compute import prepare_compute
from tunery.plugins.runtime.parent_watch import die_with_parent
from tunery.registry.errors import TuneryError

if TYPE_CHECKING:
    from tunery.plugins.training.gates import Gate, GateCase, GateResult

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Ask every gate of the request; 0 when all have answered."""
    die_with_parent()
    prepare_compute()
    from tunery.plugins.training.gates import GateCase, GateRequest

    asked, answers = map(Path, arguments)
    request = msgspec.json.decode(asked.read_bytes(), type=GateRequest)
    case, wrong = GateCase(request), False
    with answers.open("ab", buffering=0) as file:
        for gate in request.gates:
            result = _ask(gate, case, wrong)
            wrong = wrong or result.failed
            file.write(msgspec.json.encode(result) + b"\n")
    return 0


def _ask(gate: Gate, case: GateCase, wrong: bool) -> GateResult:
    """One gate's result; where it cannot be asked, that is a failure unless another gate has already found one."""
    from tunery.plugins.descriptors import load_entrypoint
    from tunery.plugins.training.gates import GateResult, Verdict

    code = gate.code
    try:
        verdict: Verdict = load_entrypoint(gate.entrypoint)(case)
    except TuneryError as error:
        code = error.code
        verdict = Verdict("skipped" if wrong else "failed", error.message)
    return GateResult(
        name=gate.name,
        code=code,
        passed=verdict.state == "passed",
        skipped=verdict.state == "skipped",
        message=verdict.message,
        figures=verdict.figures,
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
