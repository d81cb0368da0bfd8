"""Owns the training loop, on accelerate: mixed precision, accumulation, clipping, schedule, evaluation, checkpoints.

Refuses to go on with a loss that is not a number or has exploded: it stops at that step and names the rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate import Accelerator
from torch import nn

from tunery.plugins.events import CheckpointSaved, Evaluated, EventSink, StepCompleted
from tunery.plugins.parameters import TrainingParameters, step_count
from tunery.plugins.training.examples.batches import Example, epoch_batches, micro_batches
from tunery.plugins.training.job.control import Control
from tunery.plugins.training.loop.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from tunery.plugins.training.loop.distributed import ProcessGroup
from tunery.plugins.training.loop.rounding import StochasticRounding
from tunery.plugins.training.objectives.objective import Objective, Supervised, unit_of
from tunery.registry.errors import JobPaused, TrainingFailed
from tunery.registry.losses import NATS

__all__ = ["TrainingResult", "Loop"]

Evaluate = Callable[[nn.Module], Mapping[str, float]]
"""Figures of the held-out rows by name, `loss` among them."""


class TrainingResult(msgspec.Struct, frozen=True):
    """What a run did: optimizer steps, tokens without padding, seconds in the loop, and the last step's loss.

    `evaluations` are (step, held-out loss); the weights are those of `chosen`, for the reason in `why`, and `figures` is what else
    was measured of them.
    """

    steps: int
    tokens: int
    seconds: float
    train_loss: float
    evaluations: tuple[tuple[int, float], ...] = ()
    chosen: int = 0
    why: str = ""
    figures: Mapping[str, float] = {}

    @property
    def metrics(self) -> dict[str, float]:
        """What is kept of it with the version."""
        speed = round(self.tokens / max(self.seconds, 1e-9), 1)
        done = {"train_loss": self.train_loss, "steps": float(self.steps), "tokens": float(self.tokens)}
        return done | {"useful_tok_s": speed} | dict(self.figures)


class Loop:
    """One run: what it trains, and how far it is. `on_event` is given every step, evaluation and checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[Example],
        parameters: TrainingParameters,
        *,
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: Path,
        fingerprint: str,
        on_event: EventSink,
        evaluate: Evaluate | None,
        objective: Objective | None = None,
        control: Control | None = None,
        processes: ProcessGroup | None = None,
    ) -> None:
        self.model, self.examples, self.parameters, self.device = model, examples, parameters, device
        self.checkpoint, self.fingerprint, self.on_event, self.evaluate = checkpoint, fingerprint, on_event, evaluate
        self.objective, self.control = objective or Supervised(), control or Control()
        self.processes = processes or ProcessGroup()
        self.best = checkpoint.with_name("best.safetensors")
        config: Any = getattr(model, "config", None)
        self.vocabulary = int(getattr(config, "vocab_size", 0) or 2)
        # Precision is the loop's own matter: accelerate keeps one for the whole process, and evaluations have another.
        self.accelerator = Accelerator(mixed_precision="no", cpu=device.type == "cpu", gradient_accumulation_steps=1)
        self.dtype = dtype
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Only where products are computed in less than the weights are kept in.
        self.rounding = StochasticRounding(self.trained if dtype == torch.bfloat16 else (), seed=parameters.seed)
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=parameters.learning_rate, weight_decay=parameters.weight_decay, fused=True
        )
        self.total = step_count(parameters, len(examples))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _schedule(parameters, self.total))
        self.progress = load_checkpoint(
            checkpoint, model=model, optimizer=self.optimizer, scheduler=self.scheduler, fingerprint=fingerprint
        )
        self.processes.broadcast_parameters(self.trained)

    def run(self) -> TrainingResult:
        """Train the model in place, going on from the checkpoint where there is one; it ends with the best weights."""
        # Without the wrapper that adds up gradients between processes: it would not see layers that the loss runs directly.
        optimizer = self.accelerator.prepare_optimizer(self.optimizer)
        self.model.train()
        began, stopped = time.perf_counter() - self.progress.seconds, False
        for rows in _steps(self.examples, self.parameters, skip=self.progress.step, total=self.total):
            loss, norm, tokens = self._optimize(optimizer, rows)
            rate = float(self.scheduler.get_last_lr()[0])
            self.scheduler.step()
            self._advance(loss, tokens, time.perf_counter() - began)
            step = self.progress.step
            _check(loss, norm, step, rows, self.objective.ceiling(self.vocabulary, self.progress.first or 0.0))
            self.on_event(
                StepCompleted(
                    step=step,
                    steps=self.total,
                    loss=loss,
                    learning_rate=rate,
                    grad_norm=norm,
                    tokens=self.progress.tokens,
                    seconds=round(self.progress.seconds, 3),
                )
            )
            stopped = self._evaluated(step) and self._stale() and step < self.total
            self._keep(step, stopped)
            if stopped:
                break
        chosen, why = self._choose(stopped)
        self.accelerator.free_memory()
        done = self.progress
        figures = dict(zip([step for step, _ in done.evaluations], done.figures, strict=True)).get(chosen, {})
        return TrainingResult(
            done.step, done.tokens, done.seconds, done.loss, tuple(done.evaluations), chosen, why, figures
        )

    def _optimize(self, optimizer: Any, rows: Sequence[Example]) -> tuple[float, float, int]:
        """One optimizer step over `rows`: mean loss per term, gradient norm before clipping, tokens."""
        terms = self.objective.terms(rows)
        self.processes.seed_step(self.parameters.seed, self.progress.step)
        with self.rounding.applied(self.progress.step):
            found = self.processes.all_gather(lambda: self._accumulate(self.processes.shard(rows), terms))
        self.processes.all_reduce_gradients(self.trained)
        norm = float(self.accelerator.clip_grad_norm_(self.trained, self.parameters.max_grad_norm))
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return sum(loss for loss, _ in found), norm, sum(tokens for _, tokens in found)

    def _accumulate(self, rows: Sequence[Example], terms: int) -> tuple[float, int]:
        """Gradients of these rows' share of a step of so many terms: their part of its loss, and tokens."""
        total, tokens = 0.0, 0
        for batch in micro_batches(rows, self.parameters.micro_batch_size, device=self.device):
            # Divided by the whole step's terms, so that how it is cut into micro-batches changes nothing.
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = self.objective.loss(self.model, batch) / terms
            self.accelerator.backward(loss)
            total += float(loss.detach())
            tokens += batch.tokens
        return total, tokens

    def _advance(self, loss: float, tokens: int, seconds: float) -> None:
        before = self.progress
        self.progress = msgspec.structs.replace(
            before,
            step=before.step + 1,
            tokens=before.tokens + tokens,
            seconds=seconds,
            first=loss if before.first is None else before.first,
            loss=loss,
        )

    def _evaluated(self, step: int) -> bool:
        """Look at the held-out rows where that is due, and keep the weights if they are the best so far."""
        if self.evaluate is None or not (_due(step, self.parameters.eval_every) or step == self.total):
            return False
        figures = dict(self.evaluate(self.model))
        loss = figures.pop("loss")
        self.on_event(Evaluated(step=step, eval_loss=loss, figures=figures))
        before = [other for _, other in self.progress.evaluations]
        if all(loss < other for other in before):
            self.processes.on_main(lambda: save_weights(self.model, self.best))
        done = self.progress
        self.progress = msgspec.structs.replace(
            done, evaluations=[*done.evaluations, (step, loss)], figures=[*done.figures, figures]
        )
        return True

    def _stale(self) -> bool:
        """Whether the last `patience` evaluations were all no better than one before them."""
        patience, losses = self.parameters.patience, [loss for _, loss in self.progress.evaluations]
        return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])

    def _keep(self, step: int, stopped: bool) -> None:
        """Checkpoint where that is due; where a pause was asked for, always, and end there."""
        pausing = self.processes.on_main(lambda: self.control.pausing) and step < self.total and not stopped
        if not pausing and not _due(step, self.parameters.checkpoint_every):
            return
        self.processes.on_main(self._save)
        self.on_event(CheckpointSaved(step=step))
        if pausing:
            raise JobPaused(f"paused after step {step} of {self.total}; go on with tunery train --resume JOB")

    def _save(self) -> None:
        save_checkpoint(
            self.checkpoint,
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            fingerprint=self.fingerprint,
            progress=self.progress,
        )

    def _choose(self, stopped: bool) -> tuple[int, str]:
        """Put the best evaluated weights back; which step's they are, and why."""
        step, evaluations = self.progress.step, self.progress.evaluations
        if not evaluations:
            return step, f"the last step, {step}: nothing was held out to choose by"
        best, loss = min(evaluations, key=lambda pair: (pair[1], pair[0]))
        unit = unit_of(self.objective)
        name = "loss" if unit == NATS else unit
        count = f"{len(evaluations)} evaluation{'s' * (len(evaluations) > 1)}"
        end = f"; stopped early, after {self.parameters.patience} evaluations without a better one" if stopped else ""
        if best == step:
            return step, f"the last step, {step}, has the lowest held-out {name} of {count}, {loss:.4f}{end}"
        self.processes.on_main(lambda: load_weights(self.model, self.best))
        return best, f"step {best} of {step} has the lowest held-out {name} of {count}, {loss:.4f}{end}"


def _steps(
    examples: Sequence[Example], parameters: TrainingParameters, *, skip: int, total: int
) -> Iterator[list[Example]]:
    """The rows of every step after the first `skip`, epoch after epoch."""
    done, epoch = 0, 0
    while done < total:
        for rows in epoch_batches(examples, parameters.batch_size, seed=parameters.seed, epoch=epoch):
            if done >= total:
                return
            done += 1
            if done > skip:
                yield rows
        epoch += 1


def _schedule(parameters: TrainingParameters, total: int) -> Callable[[int], float]:
    """The learning rate's factor by step: a linear warm-up, then cosine, linear or constant, ending above zero."""
    warm = round(parameters.warmup * total)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        progress = (step - warm) / max(total - warm, 1)
        if parameters.schedule == "cosine":
            return max(0.5 * (1 + math.cos(math.pi * progress)), 0.01)
        return max(1 - progress, 0.01) if parameters.schedule == "linear" else 1.0

    return factor


def _check(loss: float, norm: float, step: int, rows: Sequence[Example], ceiling: float) -> None:
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite and loss <= ceiling:
        return
    places = ", ".join(f"{example.file}:{example.line}" if example.file else str(example.line) for example in rows)
    what = f"is {loss} and the gradient's norm {norm}" if not finite else f"is {loss:.4g}, above {ceiling:.4g}"
    raise TrainingFailed(
        f"step {step}: the loss {what}; nothing was published. The step's rows are {places}: look at them, or lower "
        "learning_rate",
        code="loss_exploded" if finite else "loss_not_finite",
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
