"""Write a report's files: Markdown, JSON, the picture of the losses, the rows and the samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from tunery.plugins.training.report.assemble import thinned
from tunery.plugins.training.report.findings import RowLoss
from tunery.plugins.training.report.markdown import page, samples_page
from tunery.plugins.training.report.plots import draw
from tunery.plugins.training.report.schema import Report, Sample
from tunery.registry.versions.reports import LIMITS

__all__ = ["write_report"]


def write_report(
    report: Report,
    folder: Path,
    *,
    rows: Sequence[RowLoss],
    samples: Sequence[Sample],
    rates: Sequence[tuple[int, float]] = (),
    speeds: Sequence[tuple[int, float]] = (),
) -> Report:
    """Write every file of the report into `folder`; return the report as written, with a note when there is no picture.

    `rates` are (step, learning rate) and `speeds` (step, tokens per second); they are only drawn,
    since no two runs are equally fast.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = draw(report, folder / "loss.png", rates=thinned(rates), speeds=thinned(speeds))
    if missing is not None:
        report = msgspec.structs.replace(report, notes=[*report.notes, missing])
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    (folder / "report.md").write_text(page(report, picture=missing is None), encoding="utf-8")
    (folder / "rows.jsonl").write_bytes(_lines(rows, LIMITS["report/rows.jsonl"]))
    (folder / "samples.json").write_bytes(msgspec.json.format(msgspec.json.encode(list(samples)), indent=2))
    (folder / "samples.md").write_text(samples_page(samples), encoding="utf-8")
    return report


def _lines(rows: Sequence[RowLoss], limit: int) -> bytes:
    """One JSON line per row, as many as fit into `limit` bytes."""
    lines, size = [], 0
    for row in rows:
        line = msgspec.json.encode(row) + b"\n"
        size += len(line)
        if size > limit:
            break
        lines.append(line)
    return b"".join(lines)
