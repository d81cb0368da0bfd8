"""Build the report of one job: evaluate both models, compare them, and write the files into the job's folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.events import StepCompleted, read_events
from tunery.plugins.parameters import TrainingParameters, step_count
from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.inputs.read import Inputs
from tunery.plugins.training.loop.compute import ComputeContext
from tunery.plugins.training.loop.loop import TrainingResult
from tunery.plugins.training.report.assemble import ReportFacts, assemble_report
from tunery.plugins.training.report.evaluation import Evaluation, EvaluationResults, ExampleLoss
from tunery.plugins.training.report.files import write_report
from tunery.plugins.training.report.findings import RowLoss, Split, outcome
from tunery.plugins.training.report.schema import Report, Sample

__all__ = ["ReportBuilder", "history", "paired_samples", "row_losses", "speeds", "steps_of"]

SHOWN = 4000
"""Characters of a prompt's end, and of an answer's start, that are shown."""


class ReportBuilder:
    """Builds one job's report: call `evaluate_base` once with the model to compare with, then
    `build` with the trained one.

    `supervised` says that the job minimises the cross-entropy of its rows' answers.
    """

    def __init__(
        self,
        inputs: Inputs,
        parameters: TrainingParameters,
        *,
        folder: JobFolder,
        compute: ComputeContext,
        supervised: bool,
    ) -> None:
        self._adapter, self._folder, self._supervised = inputs.request.adapter, folder, supervised
        self.evaluation = Evaluation(
            inputs.corpus,
            Renderer(Path(inputs.base.path), now=lambda: inputs.now),
            folder=folder,
            seen=step_count(parameters, len(inputs.corpus.train)) * parameters.batch_size,
            rows=parameters.report_rows,
            seed=parameters.seed,
            compute=compute,
        )

    def evaluate_base(self, load: Callable[[], nn.Module]) -> None:
        """Evaluate the model to compare with; it is loaded only when no earlier run of this job has done so."""
        self._base_results = self.evaluation.base_results(load)

    def build(self, model: nn.Module, result: TrainingResult, manifest: Mapping[str, Any]) -> Report:
        """Evaluate the trained model and write the report, replacing any other."""
        before, after = self._base_results, self.evaluation.evaluate(model)
        steps = steps_of(self._folder.events)
        rows = row_losses(self.evaluation, before, after)
        facts = ReportFacts(
            adapter=self._adapter,
            base=manifest["base"],
            method=manifest["trainer"],
            chosen=result.chosen,
            why=result.why,
            training_rows=self.evaluation.rows,
            supervised=self._supervised,
            loss_unit=manifest["loss_unit"],
            precision=manifest["precision"]["measured"],
            curve=history(steps, "loss"),
            evaluations=result.evaluations,
            notes=[
                f"There are no answers to show: {why}."
                for why in sorted({before.generation_error, after.generation_error} - {""})
            ],
        )
        shutil.rmtree(self._folder.report, ignore_errors=True)
        return write_report(
            assemble_report(rows, facts),
            self._folder.report,
            rows=rows,
            samples=paired_samples(self.evaluation, before, after, rows),
            rates=history(steps, "learning_rate"),
            speeds=speeds(steps),
        )


def row_losses(evaluation: Evaluation, before: EvaluationResults, after: EvaluationResults) -> list[RowLoss]:
    """The losses of every row, summed over its examples; rows without a finite loss are left out."""
    return [
        *_rows("held_out", evaluation.held_out, before.held_out, after.held_out),
        *_rows("train", evaluation.train, before.train, after.train),
        *_rows("general", evaluation.general, before.general, after.general),
    ]


def paired_samples(
    evaluation: Evaluation, before: EvaluationResults, after: EvaluationResults, rows: Sequence[RowLoss]
) -> list[Sample]:
    """The held-out prompts with both models' answers."""
    losses = {(row.file, row.line): row for row in rows if row.split == "held_out"}
    samples = []
    for (example, prompt, reference), base, tuned in zip(
        evaluation.prompts, before.answers, after.answers, strict=False
    ):
        row = losses.get((example.file, example.line))
        if row is not None:
            samples.append(
                Sample(
                    file=row.file,
                    line=row.line,
                    prompt=evaluation.decode(prompt)[-SHOWN:],
                    reference=evaluation.decode(reference)[:SHOWN],
                    base=base[:SHOWN],
                    tuned=tuned[:SHOWN],
                    before=row.before,
                    after=row.after,
                    outcome=outcome(row),
                )
            )
    return samples


def steps_of(path: Path) -> list[StepCompleted]:
    """The steps in a job's events, in order; the last one where a step was repeated after a crash."""
    steps = {event.step: event for event in read_events(path) if isinstance(event, StepCompleted)}
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


def _rows(
    split: Split, examples: Sequence[Example], before: Sequence[ExampleLoss], after: Sequence[ExampleLoss]
) -> list[RowLoss]:
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
