"""Owns the report of one job, from asking both models to files in the job's folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.events import StepCompleted, read_events
from tunery.plugins.parameters import TrainingParameters, step_count
from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.job.inputs import Inputs
from tunery.plugins.training.loop.loop import Fit
from tunery.plugins.training.report import Report, Sample, build, write
from tunery.plugins.training.report.evaluation import Examination, Said, Score
from tunery.plugins.training.report.findings import RowLoss, Split, outcome

__all__ = ["Teller", "history", "row_losses", "samples", "speeds", "steps_of"]

SHOWN = 4000
"""Characters of a prompt's end, and of an answer's beginning, that are shown."""


class Teller:
    """One job's: `before` once with the model to compare with, `tell` once with the trained one.

    `supervised` says that the job's loss is that of its rows' answers.
    """

    def __init__(
        self,
        inputs: Inputs,
        parameters: TrainingParameters,
        *,
        folder: Path,
        supervised: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._adapter, self._job, self.folder = inputs.request.adapter, folder, folder / "report"
        self._supervised = supervised
        self.examination = Examination(
            inputs.corpus,
            Renderer(Path(inputs.base.path), now=lambda: inputs.now),
            folder=folder,
            seen=step_count(parameters, len(inputs.corpus.train)) * parameters.batch_size,
            rows=parameters.report_rows,
            seed=parameters.seed,
            device=device,
            dtype=dtype,
        )

    def before(self, load: Callable[[], nn.Module]) -> None:
        """Ask the model to compare with; it is loaded where no earlier run of this job has asked it."""
        self._said = self.examination.before(load)

    def tell(self, model: nn.Module, done: Fit, manifest: Mapping[str, Any]) -> Report:
        """Ask the trained model, and write the report into `folder`, in place of any other."""
        before, after = self._said, self.examination.ask(model)
        steps = steps_of(self._job / "metrics.jsonl")
        rows = row_losses(self.examination, before, after)
        report = build(
            rows,
            adapter=self._adapter,
            base=manifest["base"],
            method=manifest["trainer"],
            chosen=done.chosen,
            why=done.why,
            of=self.examination.rows,
            supervised=self._supervised,
            loss_unit=manifest["loss_unit"],
            precision=manifest["precision"]["measured"],
            curve=history(steps, "loss"),
            evaluations=done.evaluations,
            notes=[f"There are no answers to show: {why}." for why in sorted({before.silence, after.silence} - {""})],
        )
        shutil.rmtree(self.folder, ignore_errors=True)
        return write(
            report,
            self.folder,
            rows=rows,
            samples=samples(self.examination, before, after, rows),
            rates=history(steps, "learning_rate"),
            speeds=speeds(steps),
        )


def row_losses(examination: Examination, before: Said, after: Said) -> list[RowLoss]:
    """Every row once, its examples together; rows without a finite loss are left out."""
    return [
        *_rows("held_out", examination.held_out, before.held_out, after.held_out),
        *_rows("train", examination.train, before.train, after.train),
        *_rows("general", examination.general, before.general, after.general),
    ]


def samples(examination: Examination, before: Said, after: Said, rows: Sequence[RowLoss]) -> list[Sample]:
    """The prompts that both models answered in full."""
    losses = {(row.file, row.line): row for row in rows if row.split == "held_out"}
    found = []
    for (example, prompt, reference), base, tuned in zip(
        examination.prompts, before.answers, after.answers, strict=False
    ):
        row = losses.get((example.file, example.line))
        if row is not None:
            found.append(
                Sample(
                    file=row.file,
                    line=row.line,
                    prompt=examination.decode(prompt)[-SHOWN:],
                    reference=examination.decode(reference)[:SHOWN],
                    base=base[:SHOWN],
                    tuned=tuned[:SHOWN],
                    before=row.before,
                    after=row.after,
                    outcome=outcome(row),
                )
            )
    return found


def steps_of(metrics: Path) -> list[StepCompleted]:
    """The steps in a job's events, in order; the last one where a step was repeated after a crash."""
    steps = {event.step: event for event in read_events(metrics) if isinstance(event, StepCompleted)}
    return [steps[number] for number in sorted(steps)]


def history(steps: Sequence[StepCompleted], name: Literal["loss", "learning_rate"]) -> list[tuple[int, float]]:
    """One figure of every step, as (step, figure)."""
    return [(step.step, getattr(step, name)) for step in steps]


def speeds(steps: Sequence[StepCompleted]) -> list[tuple[int, float]]:
    """(step, tokens per second), each over the last twentieth of the run."""
    window = max(1, len(steps) // 20)
    pairs = zip(steps, steps[window:], strict=False)
    return [
        (last.step, (last.tokens - first.tokens) / seconds)
        for first, last in pairs
        if (seconds := last.seconds - first.seconds) > 0
    ]


def _rows(split: Split, examples: Sequence[Example], before: Sequence[Score], after: Sequence[Score]) -> list[RowLoss]:
    sums: dict[tuple[str, int], list[float]] = {}
    for example, first, second in zip(examples, before, after, strict=True):
        if first.nats is not None and second.nats is not None and first.tokens:
            row = sums.setdefault((example.file, example.line), [0, 0.0, 0.0])
            row[0] += first.tokens
            row[1] += first.nats
            row[2] += second.nats
    return [
        RowLoss(file, line, split, int(tokens), round(old / tokens, 6), round(new / tokens, 6))
        for (file, line), (tokens, old, new) in sums.items()
    ]
