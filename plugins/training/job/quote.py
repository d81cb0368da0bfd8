"""Quote a whole job: the steps as preflight measured them, and every other phase."""

from __future__ import annotations

import msgspec

from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.training.examples.corpus import Corpus
from tunery.plugins.training.job.phases import Phases, estimate_phases
from tunery.plugins.training.job.preflight import Quote
from tunery.plugins.training.trainer import Trainer

__all__ = ["whole_quote"]


def whole_quote(
    steps: Quote,
    so_far: Phases,
    *,
    corpus: Corpus,
    parameters: TrainingParameters,
    trainer: Trainer,
    report: bool,
    gates: bool,
) -> Quote:
    """Add every other phase to the quote of the steps; `report` and `gates` say whether there will be any."""
    trained, held_out = (sum(row.tokens for row in rows) for rows in (corpus.train, corpus.held_out))
    parts = estimate_phases(
        so_far,
        training=60 * steps.minutes,
        evaluations=_evaluations(steps.steps, parameters.eval_every) if held_out else 0,
        held_out_share=held_out / max(steps.tokens, trained, 1),
        report=report,
        save_evaluations=getattr(trainer, "save_evaluations", 0) if held_out else 0,
        gates=gates,
    )
    return msgspec.structs.replace(steps, minutes=sum(parts.values()) / 60, parts=parts)


def _evaluations(steps: int, every: int) -> int:
    """One evaluation every so many steps, and one after the last."""
    return -(-steps // every) if every else 1
