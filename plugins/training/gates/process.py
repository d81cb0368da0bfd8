"""The process that runs gates: `python -m tunery.plugins.training.gates.process REQUEST.json RESULTS.jsonl`.

Each result is written as soon as it is known, so that the parent knows which gate was running if this process dies.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tunery.plugins.runtime.compute import prepare_compute
from tunery.plugins.runtime.parent_watch import die_with_parent
from tunery.plugins.runtime.quick_exit import exit_quickly
from tunery.registry.errors import TuneryError

if TYPE_CHECKING:
    from tunery.plugins.training.gates.request import Gate, GateCase
    from tunery.plugins.training.gates.verdict import GateResult

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run every gate of the request; return 0 when all gave a verdict."""
    die_with_parent()
    prepare_compute()
    from tunery.plugins.training.gates.request import GateCase, GateRequest

    request_path, results_path = map(Path, arguments)
    request = msgspec.json.decode(request_path.read_bytes(), type=GateRequest)
    case, any_failed = GateCase(request), False
    with results_path.open("ab", buffering=0) as file:
        for gate in request.gates:
            result = _run(gate, case, any_failed)
            any_failed = any_failed or result.failed
            file.write(msgspec.json.encode(result) + b"\n")
    return 0


def _run(gate: Gate, case: GateCase, any_failed: bool) -> GateResult:
    """Run one gate; one that raises an error counts as failed, or as skipped when an earlier gate has failed."""
    from tunery.plugins.descriptors import load_entrypoint
    from tunery.plugins.training.gates.verdict import GateResult, Verdict

    code = gate.code
    try:
        verdict: Verdict = load_entrypoint(gate.entrypoint)(case)
    except TuneryError as error:
        code = error.code
        verdict = Verdict("skipped" if any_failed else "failed", error.message)
    return GateResult(
        name=gate.name,
        code=code,
        passed=verdict.state == "passed",
        skipped=verdict.state == "skipped",
        message=verdict.message,
        figures=verdict.figures,
    )


if __name__ == "__main__":
    exit_quickly()
    raise SystemExit(main(sys.argv[1:]))
