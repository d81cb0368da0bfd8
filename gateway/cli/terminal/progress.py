"""Show a training job's events on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tunery.gateway.cli.terminal.context import say
from tunery.gateway.cli.terminal.text import visible
from tunery.plugins.training.job.phases import minutes_text

__all__ = ["Report", "show_progress"]

Report = Callable[[dict[str, Any]], None]


@contextmanager
def show_progress() -> Iterator[Report]:
    """A bar on a terminal; a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _ProgressLines()
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

        def report(event: dict[str, Any]) -> None:
            if event["kind"] == "step":
                rate = event["tokens"] / max(event["seconds"], 1e-9)
                text = f"{event.get('unit', 'loss')} {event['loss']:.3f}  {rate:.0f} tok/s"
                progress.update(task, completed=event["step"], total=event["steps"], description=text)
            elif (line := _line(event)) is not None:
                progress.console.print(line, highlight=False)

        yield report


class _ProgressLines:
    """Every tenth of the steps, and everything that is not a step."""

    def __call__(self, event: dict[str, Any]) -> None:
        every = max(1, event.get("steps", 1) // 10)
        if event["kind"] == "step" and event["step"] % every == 0:
            rate = event["tokens"] / max(event["seconds"], 1e-9)
            say(
                f"step {event['step']}/{event['steps']}  {event.get('unit', 'loss')} {event['loss']:.3f}  {rate:.0f} tok/s"
            )
        elif (line := _line(event)) is not None:
            say(line)


def _line(event: dict[str, Any]) -> str | None:
    """What to say of an event that is no step."""
    kind = event["kind"]
    if kind == "started":
        chosen = "".join(f"\n  {c['name']} = {c['value']:g}: {c['reason']} ({c['source']})" for c in event["choices"])
        measured = f", losses in {event['measured_in']}" if event["measured_in"] != event["precision"] else ""
        cut = f", {event['cut']} cut to max_length" if event["cut"] else ""
        return (
            f"{event['job']}: {event['rows']} rows ({event['tokens']} tokens{cut}), {event['held_out']} held out, "
            f"{event['steps']} steps in {event['precision']}{measured}{chosen}{_found(event.get('data_check'))}"
        )
    if kind == "quote":
        return (
            f"quote: {event['tokens']} tokens in {event['steps']} steps, about {minutes_text(event['parts'])}, "
            f"{event['peak_bytes'] / 1e9:.2f} GB at most; {event['why']}"
        )
    if kind == "times":
        quoted = event["quoted_minutes"]
        return f"took {minutes_text(event['seconds'])}" + (f"; {quoted:.1f} were quoted" if quoted else "")
    if kind == "gate":
        state = "passed" if event["passed"] else "skipped" if event["skipped"] else f"FAILED ({event['code']})"
        return f"gate {event['name']} {state}: {event['message']}"
    if kind == "chosen":
        return f"chosen: {event['why']}"
    if kind == "report":
        return "\n  ".join(["report:", *event["lines"]])
    if kind == "evaluated":
        figures = [
            f"{name.replace('_', ' ')} {event[name]:.4f}" for name in event if name not in ("kind", "step", "unit")
        ]
        return f"held out{_in(event)}: {', '.join(figures)}"
    if kind in ("failed", "cancelled", "paused"):
        return f"{kind}"
    return None


def _in(event: dict[str, Any]) -> str:
    """What losses are in, where it is not nats."""
    return f" ({event['unit']})" if "unit" in event else ""


def _found(data_check: dict[str, Any] | None) -> str:
    """A line for every rule that found something and let it pass."""
    lines = ""
    if data_check is not None:
        first = {finding["rule"]: finding for finding in reversed(data_check["warnings"])}
        for rule, count in data_check["findings"].items():
            found, passed = first[rule], " (allowed)" if rule in data_check["allowed"] else ""
            place = f"{found['file']}:{found['line']}" if found["line"] else found["file"]
            lines += visible(f"\n  {rule}{passed}: {count}, first {place} {found['message']}; {found['fix']}")
    return lines
