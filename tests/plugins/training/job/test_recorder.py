"""Recording a job: who receives its events, and what is written when it ends badly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunery.plugins.events import CheckpointSaved, Evaluated, Failed, JobEvent, StepCompleted, read_events
from tunery.plugins.manager import Plugins
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.job.ledger import OwnJob
from tunery.plugins.training.job.recorder import JobRecorder
from tunery.registry.losses import NATS
from tunery.registry.registry import Registry

STEP = StepCompleted(step=2, steps=8, loss=2.5, learning_rate=0.01, grad_norm=1.0, tokens=40, seconds=0.5)


@pytest.fixture
def sent() -> list[JobEvent]:
    return []


def recorder_of(registry: Registry, folder: Path, sent: list[JobEvent], **manifest: Any) -> JobRecorder:
    return JobRecorder(
        registry.start_job("job-1", adapter="acme/tiny", trainer="lora"),
        folder=JobFolder(folder),
        manifest={"loss_unit": NATS} | manifest,
        ledger=OwnJob(registry, "job-1"),
        plugins=Plugins(),
        on_event=sent.append,
    )


def test_events_go_to_the_caller_and_the_file_while_recording(
    registry: Registry, tmp_path: Path, sent: list[JobEvent]
) -> None:
    recorder = recorder_of(registry, tmp_path, sent)
    recorder.emit(STEP)
    recorder.write_manifest()
    assert (sent, list(tmp_path.glob("m*"))) == ([], [])
    with recorder.recording():
        recorder.start()
        recorder.emit(STEP)
        recorder.emit(CheckpointSaved(step=2))
    recorder.emit(STEP)
    assert sent == list(read_events(tmp_path / "metrics.jsonl")) == [STEP, CheckpointSaved(step=2)]
    assert recorder.progress == "after step 2 of 8"
    assert JobFolder(tmp_path).read_manifest() == {"loss_unit": NATS}


def test_losses_that_are_not_in_nats_name_their_unit(registry: Registry, tmp_path: Path, sent: list[JobEvent]) -> None:
    recorder = recorder_of(registry, tmp_path, sent, loss_unit="DPO loss per pair")
    with recorder.recording():
        recorder.emit(STEP)
        recorder.emit(Evaluated(step=0, base_loss=0.7))
        recorder.emit(CheckpointSaved(step=2))
    assert [getattr(event, "unit", None) for event in sent] == ["DPO loss per pair", "DPO loss per pair", None]


def test_a_failure_is_recorded_in_the_registry_even_when_its_event_cannot_be_sent(
    registry: Registry, tmp_path: Path, sent: list[JobEvent]
) -> None:
    recorder = recorder_of(registry, tmp_path, sent)

    def full(event: JobEvent) -> None:
        raise OSError("no space left")

    recorder._on_event = full
    with recorder.recording():
        recorder.end(Failed(error="the loss exploded", code="loss_exploded"))
    job = registry.job("job-1")
    assert (job.state, job.error, recorder.published) == ("failed", "the loss exploded", False)
