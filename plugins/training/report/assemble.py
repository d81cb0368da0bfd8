"""Assemble a report from the losses of rows before and after training. Deterministic: no times, no paths."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tunery.plugins.training.report.findings import (
    FEWEST,
    FEWEST_HELD_OUT,
    Note,
    RowLoss,
    compare,
    forgetting,
    hardest,
    memorised,
    outcome,
    suspicious,
)
from tunery.plugins.training.report.schema import General, Outcomes, Report
from tunery.registry.losses import NATS

__all__ = ["ReportFacts", "assemble_report", "thinned"]

SHOWN = 10
"""Rows of each kind that are named; counts are of all rows."""
POINTS = 500
"""Points of a curve that are kept."""


class ReportFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says of its job beside the rows' losses; see Report.

    `training_rows` is how many training rows there are to choose from, `notes` are added to the report's own.
    """

    adapter: str
    base: str
    method: str
    chosen: int
    why: str
    training_rows: int
    supervised: bool
    loss_unit: str = NATS
    precision: str = ""
    curve: Sequence[tuple[int, float]]
    evaluations: Sequence[tuple[int, float]]
    notes: Sequence[str] = ()


def assemble_report(rows: Sequence[RowLoss], facts: ReportFacts) -> Report:
    """The report of a job from the losses of its rows."""
    train, held_out, general = ([r for r in rows if r.split == split] for split in ("train", "held_out", "general"))
    suspicious_rows, memorised_rows = suspicious(train), memorised(train, held_out)
    general_change = compare(general)
    outcomes = [outcome(row) for row in held_out]
    worse = sorted((row for row in held_out if outcome(row) == "loss"), key=lambda row: row.before - row.after)
    return Report(
        adapter=facts.adapter,
        base=facts.base,
        method=facts.method,
        chosen=facts.chosen,
        why=facts.why,
        rows=facts.training_rows,
        looked_at=len(train),
        supervised=facts.supervised,
        loss_unit=facts.loss_unit,
        precision=facts.precision,
        held_out=compare(held_out),
        outcomes=Outcomes(*(outcomes.count(kind) for kind in ("win", "tie", "loss"))),
        general=General(general_change, forgetting(general_change)) if general_change else None,
        training=compare(train),
        hardest=hardest(train, SHOWN),
        worse=[Note(r.file, r.line, r.tokens, r.before, r.after) for r in worse[:SHOWN]],
        suspicious=suspicious_rows[:SHOWN],
        memorised=memorised_rows[:SHOWN],
        counts={"suspicious": len(suspicious_rows), "memorised": len(memorised_rows), "worse": len(worse)},
        curve=thinned(facts.curve),
        evaluations=thinned(facts.evaluations),
        notes=[*_notes(train, held_out, general), *facts.notes],
    )


def thinned(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most POINTS points of a curve: every n-th, and the last."""
    every = -(-len(curve) // POINTS)
    return [point for at, point in enumerate(curve, 1) if at % every == 0 or at == len(curve)]


def _notes(train: Sequence[RowLoss], held_out: Sequence[RowLoss], general: Sequence[RowLoss]) -> list[str]:
    notes = []
    if not held_out:
        notes.append("Nothing was held out, so it is unknown how the model does on rows it has not seen.")
    if len(train) < FEWEST:
        notes.append(f"With fewer than {FEWEST} training rows none is called suspicious.")
    if len(held_out) < FEWEST_HELD_OUT:
        notes.append(f"With fewer than {FEWEST_HELD_OUT} held-out rows none is called memorised.")
    if not general:
        notes.append("The base's template does not take the general set, so it is unknown what was forgotten.")
    return notes
