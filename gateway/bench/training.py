"""Compare training methods, and another system: each in a process of its own, one after the other.

A peer is any command that trains the same rows and prints a JSON object last:
`{"system", "useful_tok_s", "peak_gb", "eval_loss"}`. In the command `{base}`, `{data}`, `{held_out}`, `{steps}` and
`{batch}` stand for what this run uses.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tunery.registry.errors import InvalidInput, Unavailable

__all__ = ["TrainingWorkload", "compare", "table"]

Figures = dict[str, Any]
TAIL = 800
"""Characters of a failed process's output that are shown."""


class TrainingWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """What every system trains: the base by name here and by folder elsewhere, rows, held-out rows,
    optimizer steps and rows a step."""

    base: str
    folder: str
    data: Path
    held_out: Path | None
    steps: int
    batch: int
    settings: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int = 0


def compare(
    workload: TrainingWorkload, methods: Sequence[str], peer: str | None, say: Callable[[str], None]
) -> list[Figures]:
    """The figures of every method, then of the peer."""
    commands = [(method, _ours(workload, method)) for method in methods]
    if peer:
        commands.append(("the peer", _theirs(workload, peer)))
    figures = []
    for name, command in commands:
        say(f"measuring {name} …")
        figures.append(_run(name, command))
    return figures


def table(figures: Sequence[Figures], *, peer: bool) -> str:
    """Markdown; with a peer, which is last, every other system's figures over its."""
    columns = ["system", "useful tok/s", "peak GB", "held-out loss"]
    lines = []
    last = figures[-1]
    for each in figures:
        cells = [each["system"], f"{each['useful_tok_s']:.0f}", f"{each['peak_gb']:.2f}", _loss(each)]
        if peer:
            cells += [
                f"{each['useful_tok_s'] / last['useful_tok_s']:.2f} ×",
                f"{each['peak_gb'] / last['peak_gb']:.2f} ×",
                f"{each['eval_loss'] / last['eval_loss'] - 1:+.2%}" if _loss(each) and _loss(last) else "",
            ]
        lines.append(cells)
    columns += ["speed", "memory", "loss"] if peer else []
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _loss(figures: Figures) -> str:
    return f"{figures['eval_loss']:.4f}" if figures.get("eval_loss") is not None else ""


def _ours(workload: TrainingWorkload, method: str) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "tunery.gateway.cli",
        "bench",
        "train",
        "--base",
        workload.base,
        "--method",
        method,
    ]
    command += ["--data", str(workload.data), "--steps", str(workload.steps), "--device", workload.device, "--json"]
    command += ["--threads", str(workload.threads)]
    command += ["--held-out", str(workload.held_out)] if workload.held_out else []
    for setting in workload.settings:
        command += ["--set", setting]
    return command


def _theirs(workload: TrainingWorkload, peer: str) -> list[str]:
    known = {
        "base": workload.folder,
        "data": str(workload.data),
        "held_out": str(workload.held_out or ""),
        "steps": str(workload.steps),
        "batch": str(workload.batch),
    }
    try:
        return [part.format(**known) for part in shlex.split(peer)]
    except (KeyError, IndexError, ValueError) as error:
        raise InvalidInput(
            f"the peer's command cannot be filled in: {error}; it may name {', '.join(known)}"
        ) from error


def _run(name: str, command: Sequence[str]) -> Figures:
    """The JSON object on the last line of what a command prints."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError as error:
        raise InvalidInput(f"{name} cannot be run: {command[0]}: {error.strerror}") from error
    try:
        figures: Figures = json.loads(_last_object(done.stdout))
        return figures | {"system": str(figures["system"]), "useful_tok_s": float(figures["useful_tok_s"])}
    except (KeyError, TypeError, ValueError) as error:
        tail = (done.stderr or done.stdout).strip()[-TAIL:]
        raise Unavailable(f"{name} ended with exit code {done.returncode} and no figures:\n{tail}") from error


def _last_object(output: str) -> str:
    """From the last line that begins with a brace to the end: an object on one line, or on several."""
    lines = output.strip().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("{")]
    return "\n".join(lines[starts[-1] :]) if starts else ""
