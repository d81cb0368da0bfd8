"""Owns the report of one job, from asking both models to files in the job's folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from tunery.plugins.data.render.renderer import Renderer
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


def steps_of(metrics: Path) -> list[dict[str, Any]]:
    """What was reported of every step; of a step that was done again after a crash, the last."""
    found: dict[int, dict[str, Any]] = {}
    for line in metrics.read_bytes().splitlines():
        # A crash may cut a line short.
        with suppress(msgspec.DecodeError):
            event = msgspec.json.decode(line, type=dict[str, Any])
            if event["kind"] == "step":
                found[event["step"]] = event
    return [found[step] for step in sorted(found)]


def history(steps: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """One figure of every step that has it."""
    return [(step["step"], step[name]) for step in steps if name in step]


def speeds(steps: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Tokens a second by step, over the last twentieth of the run each time."""
    window, found = max(1, len(steps) // 20), []
    for at in range(window, len(steps)):
        first, last = steps[at - window], steps[at]
        seconds = last.get("seconds", 0) - first.get("seconds", 0)
        if seconds > 0:
            found.append((int(last["step"]), (last["tokens"] - first["tokens"]) / seconds))
    return found


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
