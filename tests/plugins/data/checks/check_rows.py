"""Rows to check, and what a check of them finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunery.plugins.data.checks.report import DataReport
from tunery.plugins.data.checks.runner import CheckOptions, check_data
from tunery.plugins.discovery import load_plugins

PLUGINS = load_plugins(allow=())


LONG = "The printer on the second floor shows a paper jam although there is no paper in any of its four trays today"


def chat(question: str, answer: str, **answered: Any) -> dict[str, Any]:
    """A chat row of one question and one answer, which has the further fields `answered`."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **answered}]}


def check(
    folder: Path,
    *rows: dict[str, Any] | bytes,
    val: tuple[dict[str, Any], ...] = (),
    base: Path | None = None,
    limit: int = 256,
) -> DataReport:
    """The report on a file of these rows, and on `val` as the held-out file."""
    path, held_out = folder / "rows.jsonl", folder / "val.jsonl"
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    held_out.write_text("".join(json.dumps(row) + "\n" for row in val))
    options = CheckOptions(max_length=limit, base_folder=base, processes=1)
    return check_data([path], options, plugins=PLUGINS, validation=held_out if val else None)


def places_of(report: DataReport, rule: str) -> list[tuple[str, int, str, str]]:
    """(file, line, path, severity) of each finding of a rule."""
    return [(f.file, f.line, f.path, f.severity) for f in report.findings if f.rule == rule]
