"""Owns the training loop, on accelerate: mixed precision, accumulation, clipping, schedule, evaluation, checkpoints.

Refuses to go on with a loss that is not a number: it stops at that step and names the rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate import Accelerator
from torch import nn

from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.training.batches import Example, epoch_batches, micro_batches
from tunery.plugins.training.checkpoint import load_checkpoint, save_checkpoint
from tunery.plugins.training.loss import summed_loss
from tunery.registry.errors import TuneryError

__all__ = ["Fit", "TrainingFailed", "fit", "step_count"]

Report = Callable[[dict[str, Any]], None]


class TrainingFailed(TuneryError, ArithmeticError):
    """The run cannot end well."""

    code = "training_failed"


class Fit(msgspec.Struct, frozen=True):
    """What a run did: optimizer steps, tokens without padding, seconds in the loop, and the last step's loss."""

    steps: int
    tokens: int
    seconds: float
    train_loss: float


def step_count(parameters: TrainingParameters, examples: int) -> int:
    """Optimizer steps of a run over `examples` rows."""
    if parameters.max_steps:
        return parameters.max_steps
    return max(1, math.ceil(parameters.epochs * math.ceil(examples / parameters.batch_size)))


def fit(
    model: nn.Module,
    examples: Sequence[Example],
    parameters: TrainingParameters,
    *,
    device: torch.device,
    dtype: torch.dtype,
    checkpoint: Path,
    fingerprint: str,
    report: Report,
    evaluate: Callable[[nn.Module], float] | None,
) -> Fit:
    """Train `model` in place, going on from `checkpoint` when there is one. `report` hears of every step."""
    accelerator = Accelerator(
        mixed_precision="no" if dtype == torch.float32 else "bf16",
        cpu=device.type == "cpu",
        gradient_accumulation_steps=1,
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=parameters.learning_rate, weight_decay=parameters.weight_decay)
    total = step_count(parameters, len(examples))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(parameters, total))
    step, counters = load_checkpoint(
        checkpoint, model=model, optimizer=optimizer, scheduler=scheduler, fingerprint=fingerprint
    )
    prepared, ready_optimizer = accelerator.prepare(model, optimizer)
    prepared.train()
    tokens, spent, loss = int(counters.get("tokens", 0)), counters.get("seconds", 0.0), math.nan
    began = time.perf_counter() - spent
    for rows in _steps(examples, parameters, skip=step, total=total):
        loss, norm, count = _optimize(accelerator, prepared, ready_optimizer, rows, parameters, device)
        rate = scheduler.get_last_lr()[0]
        scheduler.step()
        step, tokens = step + 1, tokens + count
        seconds = time.perf_counter() - began
        _check(loss, norm, step, rows)
        report({"kind": "step", "step": step, "steps": total, "loss": loss, "learning_rate": rate, "grad_norm": norm,
                "tokens": tokens, "seconds": round(seconds, 3)})  # fmt: skip
        if evaluate is not None and _due(step, parameters.eval_every) and step < total:
            report({"kind": "evaluated", "step": step, "eval_loss": evaluate(model)})
        if _due(step, parameters.checkpoint_every):
            save_checkpoint(
                checkpoint,
                model=model,
                optimizer=optimizer,
                scheduler=scheduler,
                step=step,
                fingerprint=fingerprint,
                counters={"tokens": tokens, "seconds": seconds},
            )
            report({"kind": "checkpoint", "step": step})
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    accelerator.free_memory()
    return Fit(step, tokens, time.perf_counter() - began, loss)


def _optimize(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    rows: Sequence[Example],
    parameters: TrainingParameters,
    device: torch.device,
) -> tuple[float, float, int]:
    """One optimizer step over `rows`: mean loss per trained token, gradient norm before clipping, tokens."""
    targets = sum(example.targets for example in rows)
    total, tokens = 0.0, 0
    for batch in micro_batches(rows, parameters.micro_batch_size, device=device):
        # Divided by the whole step's targets, so that how it is cut into micro-batches changes nothing.
        loss = summed_loss(model, batch) / targets
        accelerator.backward(loss)
        total += float(loss.detach())
        tokens += batch.tokens
    norm = float(accelerator.clip_grad_norm_(model.parameters(), parameters.max_grad_norm))
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, norm, tokens


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


def _check(loss: float, norm: float, step: int, rows: Sequence[Example]) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    lines = ", ".join(str(example.line) for example in rows)
    raise TrainingFailed(
        f"step {step}: the loss is {loss} and the gradient's norm {norm}; nothing was published. The step's rows are on lines "
        f"{lines}: look at them, or lower learning_rate",
        code="loss_not_finite",
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
