"""The public names of training, its gates, its report and its events; a name that goes away breaks plugins."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

EXPORTS = {
    "tunery.plugins.training": [
        "LoadContext",
        "Reproduction",
        "SaveContext",
        "TrainRequest",
        "Trainer",
        "load_base",
        "reproduce",
        "resume",
        "train",
    ],
    "tunery.plugins.training.gates": [
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
    ],
    "tunery.plugins.training.report": [
        "General",
        "Outcomes",
        "Report",
        "ReportFacts",
        "Sample",
        "assemble_report",
        "read_report",
        "summarize",
        "write_report",
    ],
    "tunery.plugins.trainers": ["EXACT", "DpoParameters", "FullParameters", "LoraParameters", "register_trainers"],
    "tunery.plugins.events": [
        "EVENTS",
        "Cancelled",
        "CheckpointChosen",
        "CheckpointSaved",
        "Evaluated",
        "EventSink",
        "Failed",
        "GateAnswered",
        "JobEvent",
        "Paused",
        "PhasesTimed",
        "Quoted",
        "ReportWritten",
        "Reproduced",
        "Started",
        "StepCompleted",
        "Succeeded",
        "decode_event",
        "encode_event",
        "event_fields",
        "read_events",
    ],
}


@pytest.mark.parametrize("name", EXPORTS)
def test_public_names_stay(name: str) -> None:
    package = import_module(name)
    assert package.__all__ == EXPORTS[name]
    assert all(getattr(package, each) is not None for each in package.__all__)


def test_training_and_its_reports_are_imported_without_torch() -> None:
    code = (
        "import sys, tunery.plugins.events, tunery.plugins.trainers, tunery.plugins.training, "
        "tunery.plugins.training.report, tunery.plugins.training.job.control, tunery.plugins.training.job.lock\n"
        "assert tunery.plugins.training.TrainRequest.__name__ == 'TrainRequest'\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
