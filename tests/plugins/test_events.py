"""Job events: their JSON, and reading it back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tunery.plugins.events import (
    EVENTS,
    CheckpointSaved,
    Evaluated,
    Failed,
    JobEvent,
    PhasesTimed,
    StepCompleted,
    decode_event,
    encode_event,
    read_events,
)

STEP = StepCompleted(step=1, steps=8, loss=2.5, learning_rate=0.01, grad_norm=1.0, tokens=40, seconds=0.5)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            STEP,
            b'{"kind":"step","step":1,"steps":8,"loss":2.5,"learning_rate":0.01,"grad_norm":1.0,"tokens":40,"seconds":0.5}',
        ),
        (
            Evaluated(step=4, eval_loss=0.5, figures={"reward_margin": 1.5}, unit="DPO loss per pair"),
            b'{"kind":"evaluated","step":4,"eval_loss":0.5,"reward_margin":1.5,"unit":"DPO loss per pair"}',
        ),
        (Evaluated(step=0, base_loss=2.0), b'{"kind":"evaluated","step":0,"base_loss":2.0}'),
        (PhasesTimed(seconds={"gates": 1.0}), b'{"kind":"times","seconds":{"gates":1.0},"quoted_minutes":null}'),
        (Failed(error="no"), b'{"kind":"failed","error":"no"}'),
        (Failed(error="no", code="disk_full"), b'{"kind":"failed","error":"no","code":"disk_full"}'),
    ],
    ids=lambda value: value.kind if isinstance(value, JobEvent) else "",
)
def test_an_event_is_one_flat_object_without_what_is_unset(event: JobEvent, line: bytes) -> None:
    assert encode_event(event) == line
    assert decode_event(line) == event


def test_kinds_are_distinct_and_documented() -> None:
    kinds = [str(event.__struct_config__.tag) for event in EVENTS]
    assert len(set(kinds)) == len(kinds)
    assert set(EVENTS) == set(JobEvent.__subclasses__())
    assert all(event.__doc__ for event in EVENTS)


@pytest.mark.parametrize("line", [b"[]", b'{"kind":"ste', b'{"kind":"step"}', b'{"kind":"none"}', b"{}"])
def test_what_is_not_an_event_is_refused_and_skipped_in_a_file(line: bytes, tmp_path: Path) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_event(line)
    path = tmp_path / "metrics.jsonl"
    assert list(read_events(path)) == []
    path.write_bytes(b"\n".join([encode_event(STEP), line, encode_event(CheckpointSaved(step=1))]))
    assert [event.kind for event in read_events(path)] == ["step", "checkpoint"]
