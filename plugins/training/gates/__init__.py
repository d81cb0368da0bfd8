"""Gates: checks that trained files must pass, in a fresh process, before they are published as a version.

A gate is a function from a `GateCase` to a `Verdict`, registered as a `GateInfo` by the hook `register_gates`:

    from tunery.plugins.training.gates import GateCase, Verdict, failed, passed

    def is_small(case: GateCase) -> Verdict:
        size = sum(path.stat().st_size for path in Path(case.request.folder).iterdir())
        return passed(f"{size} bytes", bytes=size) if size < 1e8 else failed("too large; lower r", bytes=size)
"""

from __future__ import annotations

from tunery.plugins.training.gates.request import Gate, GateCase, GateRequest, Precision, gate_entries
from tunery.plugins.training.gates.runner import run_gates
from tunery.plugins.training.gates.verdict import (
    GateResult,
    GatesFailed,
    Verdict,
    check_gates,
    failed,
    passed,
    skipped,
)

__all__ = [
    "Gate",
    "GateCase",
    "GateRequest",
    "GateResult",
    "GatesFailed",
    "Precision",
    "Verdict",
    "check_gates",
    "failed",
    "gate_entries",
    "passed",
    "run_gates",
    "skipped",
]
