"""Owns what is told of a finished job: the report as data, a few lines, and the files that are stored with the version.

Light: it imports no torch, so that `tunery adapters show` can read reports. Refuses times and paths: the same job gives the same report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from tunery.plugins.training.report.findings import (
    Change,
    Note,
    Outcome,
    RowLoss,
    compare,
    forgetting,
    hardest,
    memorised,
    outcome,
    suspicious,
)
from tunery.registry.losses import NATS
from tunery.registry.versions.reports import LIMITS

__all__ = ["General", "Outcomes", "Report", "Sample", "build", "read", "summary", "write"]

SHOWN = 10
"""Rows of each kind that are named; the counts are of all."""
POINTS = 500
"""Points of a curve that are kept."""


class Outcomes(msgspec.Struct, frozen=True):
    """Held-out rows whose answer became likelier, stayed as likely, and became less likely."""

    win: int = 0
    tie: int = 0
    loss: int = 0


class General(msgspec.Struct, frozen=True):
    """How the loss on the general set changed, and what that means."""

    change: Change
    verdict: Literal["kept", "forgot", "unclear"]


class Sample(msgspec.Struct, frozen=True):
    """A held-out prompt with its reference and both models' greedy answers; losses are the row's, in nats per token."""

    file: str
    line: int
    prompt: str
    reference: str
    base: str
    tuned: str
    before: float
    after: float
    outcome: Outcome


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. Losses of rows are in nats per trained token, measured in `precision`; `curve` is (step, training loss) and
    `evaluations` (step, held-out loss), in `loss_unit`.

    Where a trainer minimises something of its own, `supervised` is False, and curve and evaluations are of that; rows are then
    compared with the model that training began with. `looked_at` of `rows` training rows were looked at. `notes` say what could not be told, and why.
    """

    adapter: str
    base: str
    method: str
    chosen: int
    why: str
    rows: int
    looked_at: int
    supervised: bool = True
    loss_unit: str = NATS
    precision: str = ""
    held_out: Change | None = None
    outcomes: Outcomes = Outcomes()
    general: General | None = None
    training: Change | None = None
    hardest: list[Note] = []
    worse: list[Note] = []
    suspicious: list[Note] = []
    memorised: list[Note] = []
    counts: dict[str, int] = {}
    curve: list[tuple[int, float]] = []
    evaluations: list[tuple[int, float]] = []
    notes: list[str] = []


def build(
    rows: Sequence[RowLoss],
    *,
    adapter: str,
    base: str,
    method: str,
    chosen: int,
    why: str,
    of: int,
    supervised: bool,
    loss_unit: str = NATS,
    precision: str = "",
    curve: Sequence[tuple[int, float]],
    evaluations: Sequence[tuple[int, float]],
    notes: Sequence[str] = (),
) -> Report:
    """The report of a job from the losses of its rows; `of` is how many training rows there were to look at."""
    train, held_out, general = ([r for r in rows if r.split == split] for split in ("train", "held_out", "general"))
    doubtful, by_heart = suspicious(train), memorised(train, held_out)
    forgotten = compare(general)
    outcomes = [outcome(row) for row in held_out]
    worse = sorted((row for row in held_out if outcome(row) == "loss"), key=lambda row: row.before - row.after)
    return Report(
        adapter=adapter,
        base=base,
        method=method,
        chosen=chosen,
        why=why,
        rows=of,
        looked_at=len(train),
        supervised=supervised,
        loss_unit=loss_unit,
        precision=precision,
        held_out=compare(held_out),
        outcomes=Outcomes(*(outcomes.count(kind) for kind in ("win", "tie", "loss"))),
        general=General(forgotten, forgetting(forgotten)) if forgotten else None,
        training=compare(train),
        hardest=hardest(train, SHOWN),
        worse=[Note(r.file, r.line, r.tokens, r.before, r.after) for r in worse[:SHOWN]],
        suspicious=doubtful[:SHOWN],
        memorised=by_heart[:SHOWN],
        counts={"suspicious": len(doubtful), "memorised": len(by_heart), "worse": len(worse)},
        curve=_thinned(curve),
        evaluations=_thinned(evaluations),
        notes=[*_notes(train, held_out, general), *notes],
    )


def write(
    report: Report,
    folder: Path,
    *,
    rows: Sequence[RowLoss],
    samples: Sequence[Sample],
    rates: Sequence[tuple[int, float]] = (),
    speeds: Sequence[tuple[int, float]] = (),
) -> Report:
    """Write every file of the report into `folder`; the report as it was written, which may say that there is no picture.

    `rates` are (step, learning rate) and `speeds` (step, tokens a second): they are in the picture alone, as no two runs are as fast.
    """
    from tunery.plugins.training.report.markdown import page, samples_page
    from tunery.plugins.training.report.plots import draw

    folder.mkdir(parents=True, exist_ok=True)
    missing = draw(report, folder / "loss.png", rates=_thinned(rates), speeds=_thinned(speeds))
    if missing is not None:
        report = msgspec.structs.replace(report, notes=[*report.notes, missing])
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    (folder / "report.md").write_text(page(report, picture=missing is None), encoding="utf-8")
    (folder / "rows.jsonl").write_bytes(_lines(rows, LIMITS["report/rows.jsonl"]))
    (folder / "samples.json").write_bytes(msgspec.json.format(msgspec.json.encode(list(samples)), indent=2))
    (folder / "samples.md").write_text(samples_page(samples), encoding="utf-8")
    return report


def read(path: Path) -> Report | None:
    """A report that was stored, or None where the file is none that this Tunery writes."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError, RecursionError):
        return None


def summary(report: Report, *, chosen: bool = True) -> list[str]:
    """The report in a few lines; one is of which step was `chosen`, unless that was already told."""
    lines = []
    if report.held_out is not None:
        lines.append(f"held out: {change_text(report.held_out)}")
        won = report.outcomes
        lines.append(f"rows won {won.win}, tied {won.tie}, lost {won.loss} of {report.held_out.rows} held out")
    if report.general is not None:
        lines.append(f"general skills: {verdict_text(report.general)}")
    lines += [f"chosen: {report.why}"] if chosen else []
    for kind, text in (("suspicious", "may have a wrong answer"), ("memorised", "are known by heart")):
        count, notes = report.counts.get(kind, 0), getattr(report, kind)
        if count:
            more = ", …" if count > 3 else ""
            lines.append(f"{count} of {report.looked_at} rows {text}: {', '.join(map(place, notes[:3]))}{more}")
    if report.hardest:
        shown = ", ".join(f"{place(note)} ({note.after:.2f})" for note in report.hardest[:3])
        lines.append(f"hardest rows: {shown}")
    return lines


def change_text(change: Change) -> str:
    """Such as `loss 2.1234 → 1.2345 (-0.89, 95 % between -0.95 and -0.83)`."""
    moved = change.after - change.before
    return f"loss {change.before:.4f} → {change.after:.4f} ({moved:+.3f}, 95 % between {change.low:+.3f} and {change.high:+.3f})"


def verdict_text(general: General) -> str:
    """What became of the general set, in a sentence."""
    said = {
        "kept": "kept",
        "forgot": "some forgotten: train fewer epochs, at a lower learning rate, or mix in general rows",
        "unclear": "perhaps some forgotten: the set is too small to tell",
    }
    return f"{said[general.verdict]}; {change_text(general.change)}"


def place(note: Note) -> str:
    """`file:line`."""
    return f"{note.file}:{note.line}"


def _thinned(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Every so many points, and the last."""
    every = -(-len(curve) // POINTS)
    return [point for at, point in enumerate(curve, 1) if at % every == 0 or at == len(curve)]


def _lines(rows: Sequence[RowLoss], limit: int) -> bytes:
    """A line for each row, as many as fit into `limit` bytes."""
    lines, size = [], 0
    for row in rows:
        line = msgspec.json.encode(row) + b"\n"
        size += len(line)
        if size > limit:
            break
        lines.append(line)
    return b"".join(lines)


def _notes(train: Sequence[RowLoss], held_out: Sequence[RowLoss], general: Sequence[RowLoss]) -> list[str]:
    from tunery.plugins.training.report.findings import FEWEST, FEWEST_HELD_OUT

    notes = []
    if not held_out:
        notes.append("Nothing was held out, so nobody can say how the model does on rows it has not seen.")
    if len(train) < FEWEST:
        notes.append(f"With fewer than {FEWEST} training rows none is called suspicious.")
    if len(held_out) < FEWEST_HELD_OUT:
        notes.append(f"With fewer than {FEWEST_HELD_OUT} held-out rows none is called memorised.")
    if not general:
        notes.append("The base's template does not take the general set, so nobody can say what was forgotten.")
    return notes
