"""The events of a training job: one struct per kind, and how they are written to and read from `metrics.jsonl`.

A job hands each event to its caller (`on_event`), to plugins (the hook `job_event`), and, as one line of JSON, to
`metrics.jsonl` in its folder. The JSON field `kind` says which struct a line holds:

    for event in read_events(folder / "metrics.jsonl"):
        match event:
            case StepCompleted():
                print(event.step, event.loss)
            case Evaluated(eval_loss=float(loss)):
                print("held out", loss)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from tunery.plugins.parameters import Choice
from tunery.registry.values import about

__all__ = [
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
]


class JobEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="event"):
    """The base class of all events; `kind` is the JSON tag."""

    @property
    def kind(self) -> str:
        """The event's kind, as in JSON."""
        return str(self.__struct_config__.tag)


EventSink: TypeAlias = Callable[[JobEvent], None]
"""Anything that takes events, one at a time."""


class Started(JobEvent, frozen=True, kw_only=True, tag="started"):
    """The rows are read and training is about to begin; sent again when a job is resumed."""

    job: Annotated[str, about("the job's id")]
    rows: Annotated[int, about("training rows")]
    held_out: Annotated[int, about("held-out rows")]
    tokens: Annotated[int, about("tokens of the training rows, without padding")]
    cut: Annotated[int, about("rows that were cut to `max_length`")]
    steps: Annotated[int, about("optimizer steps in the whole run")]
    precision: Annotated[str, about("dtype that steps compute in")]
    measured_in: Annotated[str, about("dtype that losses are measured in")]
    choices: Annotated[list[Choice], about("parameters that were chosen: `name`, `value`, `reason`, `source`")]
    data_check: Annotated[
        dict[str, Any] | None, about("result of the data check: `allowed`, `findings` by rule, first `warnings`")
    ] = None


class Quoted(JobEvent, frozen=True, kw_only=True, tag="quote"):
    """The longest rows have been tried: what the run will take."""

    tokens: Annotated[int, about("tokens of all steps, without padding")]
    steps: Annotated[int, about("optimizer steps")]
    minutes: Annotated[float, about("expected duration of the whole job")]
    peak_bytes: Annotated[int, about("peak memory")]
    micro_batch_size: Annotated[int, about("rows per micro-batch that fit in memory")]
    why: Annotated[str, about("why that micro-batch size")]
    parts: Annotated[dict[str, float], about("expected seconds of each phase")] = {}


class StepCompleted(JobEvent, frozen=True, kw_only=True, tag="step"):
    """An optimizer step is done."""

    step: Annotated[int, about("steps done")]
    steps: Annotated[int, about("steps in the whole run")]
    loss: Annotated[float, about("mean training loss of the step, in nats per trained token unless `unit` is set")]
    learning_rate: Annotated[float, about("learning rate of the step")]
    grad_norm: Annotated[float, about("gradient norm before clipping")]
    tokens: Annotated[int, about("tokens trained on so far, without padding")]
    seconds: Annotated[float, about("seconds in the loop so far")]
    token_accuracy: Annotated[
        float | UnsetType, about("share of the step's trained tokens that the model found the likeliest, where counted")
    ] = UNSET
    unit: Annotated[str | UnsetType, about("unit of the loss, when it is not nats per trained token")] = UNSET


class Evaluated(JobEvent, frozen=True, kw_only=True, tag="evaluated"):
    """The held-out rows have been evaluated: at step 0 the base model, later the model in training."""

    step: Annotated[int, about("steps done; 0 for the base")]
    base_loss: Annotated[float | UnsetType, about("held-out loss of the base (step 0)")] = UNSET
    eval_loss: Annotated[float | UnsetType, about("held-out loss of the model in training (other steps)")] = UNSET
    figures: Annotated[
        dict[str, float], about("what else the objective measures; in JSON each is a field of its own")
    ] = {}
    unit: Annotated[str | UnsetType, about("unit of the loss, when it is not nats per trained token")] = UNSET


class CheckpointSaved(JobEvent, frozen=True, kw_only=True, tag="checkpoint"):
    """A checkpoint has been written; a killed job resumes from here."""

    step: Annotated[int, about("steps done")]


class CheckpointChosen(JobEvent, frozen=True, kw_only=True, tag="chosen"):
    """The loop has ended, and the weights with the lowest held-out loss are restored."""

    step: Annotated[int, about("the step that the weights are from")]
    why: Annotated[str, about("why that one")]
    eval_loss: Annotated[float, about("its held-out loss")]
    base_loss: Annotated[float | None, about("held-out loss of the base")] = None


class ReportWritten(JobEvent, frozen=True, kw_only=True, tag="report"):
    """The report is on disk."""

    path: Annotated[str, about("its Markdown page")]
    lines: Annotated[list[str], about("a summary")]


class GateAnswered(JobEvent, frozen=True, kw_only=True, tag="gate"):
    """A gate has given its verdict on the trained files."""

    name: Annotated[str, about("the gate")]
    code: Annotated[str, about("error code that the job fails with when this gate fails")]
    passed: Annotated[bool, about("whether it holds")]
    skipped: Annotated[bool, about("whether it could not be checked")] = False
    message: Annotated[str, about("the verdict in words")]
    figures: Annotated[dict[str, float], about("the verdict in numbers")] = {}


class PhasesTimed(JobEvent, frozen=True, kw_only=True, tag="times"):
    """The work is done; what each phase took."""

    seconds: Annotated[dict[str, float], about("seconds by phase")]
    quoted_minutes: Annotated[float | None, about("what the quote said")] = None


class Reproduced(JobEvent, frozen=True, kw_only=True, tag="repeated"):
    """A version has been trained again by `tunery reproduce`; nothing is published."""

    digest: Annotated[str, about("digest of the files that were made")]


class Succeeded(JobEvent, frozen=True, kw_only=True, tag="succeeded"):
    """The version is published."""

    version: Annotated[str, about("such as `acme/support@3`")]
    digest: Annotated[str, about("the version's digest")]


class Failed(JobEvent, frozen=True, kw_only=True, tag="failed"):
    """The job ended with an error; nothing was published."""

    error: Annotated[str, about("the message")]
    code: Annotated[str | UnsetType, about("the error code; `internal_error` for an error that nobody foresaw")] = UNSET
    needed_bytes: Annotated[int | UnsetType, about("memory that would be enough, when that is what was missing")] = (
        UNSET
    )


class Cancelled(JobEvent, frozen=True, kw_only=True, tag="cancelled"):
    """The job was stopped by a user."""

    error: Annotated[str, about("how it was stopped")]


class Paused(JobEvent, frozen=True, kw_only=True, tag="paused"):
    """The job was paused by a user, with a checkpoint."""

    error: Annotated[str, about("where it stopped")]


EVENTS: tuple[type[JobEvent], ...] = (
    Started,
    Quoted,
    Evaluated,
    StepCompleted,
    CheckpointSaved,
    CheckpointChosen,
    ReportWritten,
    GateAnswered,
    PhasesTimed,
    Succeeded,
    Reproduced,
    Failed,
    Cancelled,
    Paused,
)
"""Every kind of event, in the order of a run."""

_BY_KIND = {str(event.__struct_config__.tag): event for event in EVENTS}
_EVALUATED = frozenset({"kind"} | {field.name for field in msgspec.structs.fields(Evaluated)} - {"figures"})


def event_fields(event: JobEvent) -> dict[str, Any]:
    """The event as JSON fields: fields that are unset are absent, and figures of an evaluation
    stand beside its loss."""
    fields: dict[str, Any] = {}
    for name, value in msgspec.to_builtins(event).items():
        fields |= value if name == "figures" and isinstance(event, Evaluated) else {name: value}
    return fields


def encode_event(event: JobEvent) -> bytes:
    """The event as one line of JSON, without the line break."""
    return msgspec.json.encode(event_fields(event))


def decode_event(line: bytes | str) -> JobEvent:
    """Parse what `encode_event` wrote; raise msgspec.DecodeError for anything else."""
    fields = msgspec.json.decode(line, type=dict[str, Any])
    event = _BY_KIND.get(str(fields.get("kind")))
    if event is None:
        raise msgspec.ValidationError(f"unknown kind of event {fields.get('kind')!r}")
    if event is Evaluated:
        figures = {name: value for name, value in fields.items() if name not in _EVALUATED}
        fields = {name: value for name, value in fields.items() if name in _EVALUATED} | {"figures": figures}
    return msgspec.convert(fields, event)


def read_events(path: Path) -> Iterator[JobEvent]:
    """The events in a job's `metrics.jsonl`, none when there is no such file.

    Lines that a crash cut short, and kinds of another Tunery, are skipped.
    """
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            event = decode_event(line)
        except msgspec.DecodeError:
            continue
        yield event
