"""The training loop, on accelerate: mixed precision, gradient accumulation, clipping, schedule,
evaluation, checkpoints.

It stops, and names the rows of the step, when the loss is not finite or has exploded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from accelerate import Accelerator
from torch import nn

from tunery.plugins.events import CheckpointSaved, Evaluated, EventSink, StepCompleted
from tunery.plugins.parameters import TrainingParameters, step_count
from tunery.plugins.training.examples.batches import Example, epoch_batches, micro_batches
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.loop.checkpoint import (
    Progress,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from tunery.plugins.training.loop.compute import ComputeContext
from tunery.plugins.training.loop.rounding import StochasticRounding
from tunery.plugins.training.objectives.objective import Objective, Supervised, step_loss, unit_of
from tunery.registry.errors import JobPaused, TrainingFailed, some_of
from tunery.registry.losses import NATS

__all__ = ["Loop", "LoopCallbacks", "TrainingResult"]

_SHOWN = 20
"""Rows that an error names."""

Evaluate = Callable[[nn.Module], Mapping[str, float]]
"""Figures of the held-out rows by name, `loss` among them."""


class LoopCallbacks(msgspec.Struct, frozen=True, kw_only=True):
    """What the loop calls: `on_event` for every step, evaluation and checkpoint; `evaluate` for the figures of the
    held-out rows, None when nothing is held out; `on_epoch` with the model and how far it is after each epoch's last
    step, `before_checkpoint`, and `should_pause` after every step, to stop there with a checkpoint: these three in the
    main process."""

    on_event: EventSink = lambda event: None
    evaluate: Evaluate | None = None
    on_epoch: Callable[[nn.Module, Progress], None] | None = None
    before_checkpoint: Callable[[], None] = lambda: None
    should_pause: Callable[[], bool] = lambda: False


class TrainingResult(msgspec.Struct, frozen=True):
    """How training went: optimizer steps, tokens without padding, seconds in the loop, and the last step's loss.

    `evaluations` are (step, held-out loss); the weights are those of step `chosen`, for the reason in `why`, and
    `figures` is what else was measured of them.
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
        """The metrics that are stored with the version."""
        speed = round(self.tokens / max(self.seconds, 1e-9), 1)
        counts = {"train_loss": self.train_loss, "steps": float(self.steps), "tokens": float(self.tokens)}
        return counts | {"useful_tok_s": speed} | dict(self.figures)


class Loop:
    """One training run of `model` on `examples`; its checkpoints are in the job's `folder`, and
    only fit the same `fingerprint`."""

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[Example],
        parameters: TrainingParameters,
        *,
        compute: ComputeContext,
        folder: JobFolder,
        fingerprint: str,
        objective: Objective | None = None,
        callbacks: LoopCallbacks | None = None,
    ) -> None:
        self.model, self.examples, self.parameters = model, examples, parameters
        self.compute, self.processes, self.device = compute, compute.processes, compute.device
        self.folder, self.fingerprint = folder, fingerprint
        self.objective, self.callbacks = objective or Supervised(), callbacks or LoopCallbacks()
        config: Any = getattr(model, "config", None)
        self.vocabulary = int(getattr(config, "vocab_size", 0) or 2)
        # The loop sets precision itself: accelerate has one for the whole process, and evaluations use another.
        self.accelerator = Accelerator(
            mixed_precision="no", cpu=self.device.type == "cpu", gradient_accumulation_steps=1
        )
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Only when matrix products compute in a smaller dtype than the weights are stored in.
        self.rounding = StochasticRounding(
            self.trained if compute.dtype == torch.bfloat16 else (), seed=parameters.seed
        )
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=parameters.learning_rate, weight_decay=parameters.weight_decay, fused=True
        )
        self.total = step_count(parameters, len(examples))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _schedule(parameters, self.total))
        self.progress = load_checkpoint(
            folder.checkpoint, model=model, optimizer=self.optimizer, scheduler=self.scheduler, fingerprint=fingerprint
        )
        self.processes.broadcast_parameters(self.trained)

    def run(self) -> TrainingResult:
        """Train the model in place, from the last checkpoint if there is one; it ends with the best weights."""
        # The model is not wrapped for distributed training: the wrapper would not see the layers
        # that the loss runs directly.
        optimizer = self.accelerator.prepare_optimizer(self.optimizer)
        self.model.train()
        began, stopped = time.perf_counter() - self.progress.seconds, False
        for rows in _steps(self.examples, self.parameters, skip=self.progress.step, total=self.total):
            loss, accuracy, norm, tokens = self._optimize(optimizer, rows)
            rate = float(self.scheduler.get_last_lr()[0])
            self.scheduler.step()
            self._advance(loss, accuracy, tokens, time.perf_counter() - began)
            step = self.progress.step
            _check_loss(loss, norm, step, rows, self.objective.ceiling(self.vocabulary, self.progress.first or 0.0))
            self.callbacks.on_event(
                StepCompleted(
                    step=step,
                    steps=self.total,
                    loss=loss,
                    learning_rate=rate,
                    grad_norm=norm,
                    tokens=self.progress.tokens,
                    seconds=round(self.progress.seconds, 3),
                    token_accuracy=msgspec.UNSET if accuracy is None else round(accuracy, 4),
                )
            )
            stopped = self._evaluate_if_due(step) and self._is_stale() and step < self.total
            self._keep_epoch(step)
            self._checkpoint_if_due(step, stopped)
            if stopped:
                break
        chosen, why = self._restore_best(stopped)
        self.accelerator.free_memory()
        done = self.progress
        figures = dict(zip([step for step, _ in done.evaluations], done.figures, strict=True)).get(chosen, {})
        return TrainingResult(
            done.step, done.tokens, done.seconds, done.loss, tuple(done.evaluations), chosen, why, figures
        )

    def _optimize(self, optimizer: Any, rows: Sequence[Example]) -> tuple[float, float | None, float, int]:
        """One optimizer step over `rows`; return the mean loss per term, the share of correct terms where the objective
        counts them, the gradient norm before clipping, and tokens."""
        terms = self.objective.terms(rows)
        self.processes.seed_step(self.parameters.seed, self.progress.step)
        with self.rounding.applied(self.progress.step):
            parts = self.processes.all_gather(lambda: self._accumulate(self.processes.shard(rows), terms))
        self.processes.all_reduce_gradients(self.trained)
        norm = float(self.accelerator.clip_grad_norm_(self.trained, self.parameters.max_grad_norm))
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        counts = [correct for _, correct, _ in parts if correct is not None]
        accuracy = sum(counts) / max(terms, 1) if counts else None
        return sum(loss for loss, _, _ in parts), accuracy, norm, sum(tokens for _, _, tokens in parts)

    def _accumulate(self, rows: Sequence[Example], terms: int) -> tuple[float, int | None, int]:
        """Accumulate the gradients of this process's rows of a step with so many `terms`; return their part of the loss,
        how many terms were correct where the objective counts them, and tokens."""
        total, counts, tokens = 0.0, list[int](), 0
        for batch in micro_batches(rows, self.parameters.micro_batch_size, device=self.device):
            # Divided by the terms of the whole step, so that the size of micro-batches changes nothing but rounding.
            with torch.autocast(self.device.type, self.compute.dtype, enabled=self.compute.dtype != torch.float32):
                scored = step_loss(self.objective, self.model, batch)
                loss = scored.total / terms
            self.accelerator.backward(loss)
            total += float(loss.detach())
            counts += [] if scored.correct is None else [int(scored.correct)]
            tokens += batch.tokens
        return total, sum(counts) if counts else None, tokens

    def _advance(self, loss: float, accuracy: float | None, tokens: int, seconds: float) -> None:
        before = self.progress
        self.progress = msgspec.structs.replace(
            before,
            step=before.step + 1,
            tokens=before.tokens + tokens,
            seconds=seconds,
            first=loss if before.first is None else before.first,
            loss=loss,
            token_accuracy=accuracy,
        )

    def _evaluate_if_due(self, step: int) -> bool:
        """Evaluate the held-out rows when that is due, and save the weights if they are the best so
        far; return whether it was due."""
        evaluate = self.callbacks.evaluate
        if evaluate is None or not (_is_due(step, self.parameters.eval_every) or step == self.total):
            return False
        figures = dict(evaluate(self.model))
        loss = figures.pop("loss")
        self.callbacks.on_event(Evaluated(step=step, eval_loss=loss, figures=figures))
        before = [other for _, other in self.progress.evaluations]
        if all(loss < other for other in before):
            self.processes.on_main(lambda: save_weights(self.model, self.folder.best_weights))
        done = self.progress
        self.progress = msgspec.structs.replace(
            done, evaluations=[*done.evaluations, (step, loss)], figures=[*done.figures, figures]
        )
        return True

    def _keep_epoch(self, step: int) -> None:
        """Hand out the model at the end of an epoch. Before the checkpoint that may follow: what comes after that one is
        not done again when the process is killed."""
        on_epoch = self.callbacks.on_epoch
        if on_epoch is not None and _is_due(step, math.ceil(len(self.examples) / self.parameters.batch_size)):
            self.processes.on_main(lambda: on_epoch(self.model, self.progress))

    def _is_stale(self) -> bool:
        """Whether none of the last `patience` evaluations was better than the best before them."""
        patience, losses = self.parameters.patience, [loss for _, loss in self.progress.evaluations]
        return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])

    def _checkpoint_if_due(self, step: int, stopped: bool) -> None:
        """Save a checkpoint when one is due; when a pause was requested, save one and raise JobPaused."""
        pausing = self.processes.on_main(self.callbacks.should_pause) and step < self.total and not stopped
        if not pausing and not _is_due(step, self.parameters.checkpoint_every):
            return
        self.processes.on_main(self._save_checkpoint)
        self.callbacks.on_event(CheckpointSaved(step=step))
        if pausing:
            raise JobPaused(f"paused after step {step} of {self.total}; go on with tunery train --resume JOB")

    def _save_checkpoint(self) -> None:
        self.callbacks.before_checkpoint()
        save_checkpoint(
            self.folder.checkpoint,
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            fingerprint=self.fingerprint,
            progress=self.progress,
        )

    def _restore_best(self, stopped: bool) -> tuple[int, str]:
        """Restore the weights with the lowest held-out loss; return their step, and why it was chosen."""
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
        self.processes.on_main(lambda: load_weights(self.model, self.folder.best_weights))
        return best, f"step {best} of {step} has the lowest held-out {name} of {count}, {loss:.4f}{end}"


def _steps(
    examples: Sequence[Example], parameters: TrainingParameters, *, skip: int, total: int
) -> Iterator[list[Example]]:
    """The rows of every step after the first `skip`, epoch by epoch."""
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


def _check_loss(loss: float, norm: float, step: int, rows: Sequence[Example], ceiling: float) -> None:
    """Raise TrainingFailed when the loss or the gradient norm is not finite, or the loss is above `ceiling`."""
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite and loss <= ceiling:
        return
    places = [f"{example.file}:{example.line}" if example.file else str(example.line) for example in rows]
    what = f"is {loss} and the gradient's norm {norm}" if not finite else f"is {loss:.4g}, above {ceiling:.4g}"
    raise TrainingFailed(
        f"step {step}: the loss {what}; nothing was published. The step's rows are {some_of(places, _SHOWN)}: look at them, or lower "
        "learning_rate",
        code="loss_exploded" if finite else "loss_not_finite",
    )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
