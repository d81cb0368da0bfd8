"""Show a training job's events, and lines of text between them, on stderr: a bar on a terminal, a line now and then
elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tunery.gateway.cli.terminal.context import say
from tunery.gateway.cli.terminal.text import visible
from tunery.plugins.events import (
    Cancelled,
    CheckpointChosen,
    Evaluated,
    Failed,
    GateAnswered,
    JobEvent,
    Paused,
    PhasesTimed,
    Quoted,
    ReportWritten,
    Started,
    StepCompleted,
    event_fields,
)
from tunery.plugins.training.job.phases import minutes_text

__all__ = ["show_progress"]

_NOT_A_LOSS = {"kind", "step", "unit"}


@contextmanager
def show_progress() -> Iterator[Callable[[JobEvent | str], None]]:
    """A bar on a terminal; a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _print_lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None)

        def show(event: JobEvent | str) -> None:
            if isinstance(event, StepCompleted):
                progress.update(task, completed=event.step, total=event.steps, description=_step(event))
            elif (line := _line(event)) is not None:
                progress.console.print(line, highlight=False)

        yield show


def _print_lines(event: JobEvent | str) -> None:
    """Every tenth of the steps, and every other event."""
    if isinstance(event, StepCompleted):
        if event.step % max(1, event.steps // 10) == 0:
            say(f"step {event.step}/{event.steps}  {_step(event)}")
    elif (line := _line(event)) is not None:
        say(line)


def _step(event: StepCompleted) -> str:
    """Loss and throughput."""
    return f"{event.unit or 'loss'} {event.loss:.3f}  {event.tokens / max(event.seconds, 1e-9):.0f} tok/s"


def _line(event: JobEvent | str) -> str | None:
    """The text for an event other than a step; None when there is nothing to print."""
    match event:
        case str():
            return event
        case Started():
            return _started(event)
        case Quoted():
            return (
                f"quote: {event.tokens} tokens in {event.steps} steps, about {minutes_text(event.parts)}, "
                f"{event.peak_bytes / 1e9:.2f} GB at most; {event.why}"
            )
        case PhasesTimed():
            quoted = f"; {event.quoted_minutes:.1f} were quoted" if event.quoted_minutes else ""
            return f"took {minutes_text(event.seconds)}{quoted}"
        case GateAnswered():
            state = "passed" if event.passed else "skipped" if event.skipped else f"FAILED ({event.code})"
            return f"gate {event.name} {state}: {event.message}"
        case CheckpointChosen():
            return f"chosen: {event.why}"
        case ReportWritten():
            return "\n  ".join(["report:", *event.lines])
        case Evaluated():
            losses = event_fields(event).items()
            shown = [f"{name.replace('_', ' ')} {loss:.4f}" for name, loss in losses if name not in _NOT_A_LOSS]
            return f"held out{f' ({event.unit})' if event.unit else ''}: {', '.join(shown)}"
        case Failed() | Cancelled() | Paused():
            return event.kind
    return None


def _started(event: Started) -> str:
    """The rows, the choices, and what the data check found."""
    chosen = "".join(f"\n  {c.name} = {c.value:g}: {c.reason} ({c.source})" for c in event.choices)
    measured = f", losses in {event.measured_in}" if event.measured_in != event.precision else ""
    cut = f", {event.cut} cut to max_length" if event.cut else ""
    return (
        f"{event.job}: {event.rows} rows ({event.tokens} tokens{cut}), {event.held_out} held out, "
        f"{event.steps} steps in {event.precision}{measured}{chosen}{_findings(event.data_check)}"
    )


def _findings(data_check: dict[str, Any] | None) -> str:
    """A line for every rule of the data check that found something which did not stop the run."""
    lines = ""
    if data_check is not None:
        examples = {finding["rule"]: finding for finding in reversed(data_check["warnings"])}
        for rule, count in data_check["findings"].items():
            example, allowed = examples[rule], " (allowed)" if rule in data_check["allowed"] else ""
            place = f"{example['file']}:{example['line']}" if example["line"] else example["file"]
            lines += visible(f"\n  {rule}{allowed}: {count}, first {place} {example['message']}; {example['fix']}")
    return lines
