"""Try a run before it starts: the longest rows forward and backward, a quote, and a micro-batch
size that fits in memory.

Memory is measured with a single row and extrapolated to a whole micro-batch, because a machine that runs out of memory
kills the process instead of raising an error. Nothing is changed: gradients are dropped and random states restored.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import torch
from torch import nn

from tunery.plugins.parameters import TrainingParameters, step_count
from tunery.plugins.runtime.machine_memory import SPARE
from tunery.plugins.runtime.memory import available_memory, current_memory, peak_memory, reset_peak_memory
from tunery.plugins.training.examples.batches import Example, collate
from tunery.plugins.training.loop.compute import ComputeContext
from tunery.plugins.training.objectives.objective import Objective, step_loss
from tunery.registry.errors import InvalidInput

__all__ = ["NotEnoughMemory", "Quote", "preflight"]


class NotEnoughMemory(InvalidInput):
    """Not even one row fits; `needed_bytes` of the machine's memory would do, None where a GPU's is meant."""

    def __init__(self, message: str, needed_bytes: int | None) -> None:
        super().__init__(message, code="out_of_memory")
        self.needed_bytes = needed_bytes


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What a run will take: tokens without padding, optimizer steps, minutes, peak memory; the
    micro-batch size, and why that one.

    `parts` are the seconds of each phase, when more than the steps is quoted.
    """

    tokens: int
    steps: int
    minutes: float
    peak_bytes: int
    micro_batch_size: int
    why: str
    parts: dict[str, float] = {}


def preflight(
    model: nn.Module,
    examples: Sequence[Example],
    parameters: TrainingParameters,
    *,
    objective: Objective,
    compute: ComputeContext,
) -> Quote:
    """Try the longest rows; raise NotEnoughMemory (out_of_memory) when not even one row fits.

    Several processes do so at the same time, and share the machine's memory and the steps.
    """
    device, dtype, processes = compute.device, compute.dtype, compute.processes
    ranked = sorted(examples, key=lambda example: example.tokens, reverse=True)
    sharing = processes.local_size if device.type == "cpu" else 1
    free = current_memory(device) + int(SPARE * available_memory(device) / sharing)
    budget = min(int(parameters.memory_gb * 1e9) or free, compute.memory_limit or sys.maxsize)
    with _restored(model):
        states = _states(model, dtype)
        before = current_memory(device) + states
        reset_peak_memory(device)
        _try(model, ranked[:1], objective, device, dtype)
        one = max(peak_memory(device) + states - before, 1)
        size = _fitting(parameters.micro_batch_size, one, before, budget)
        if size == 0:
            raise NotEnoughMemory(
                f"the longest row ({ranked[0].tokens} tokens, line {ranked[0].line}) needs {(before + one) / 1e9:.2f} GB and "
                f"{budget / 1e9:.2f} GB may be used; lower max_length or choose qlora",
                None if device.type == "cuda" or parameters.memory_gb else before + one,
            )
        seconds, tokens = _try(model, ranked[:size], objective, device, dtype)
    steps = step_count(parameters, len(examples))
    each = sum(example.tokens for example in examples) / len(examples)
    total = round(steps * parameters.batch_size * each)
    why = f"{size} rows at once fit"
    if size < parameters.micro_batch_size:
        why = (
            f"{parameters.micro_batch_size} of the longest rows would need "
            f"{(before + one * parameters.micro_batch_size) / 1e9:.2f} GB of {budget / 1e9:.2f}; "
            f"{size} at once, accumulated to the same batch"
        )
    return Quote(
        tokens=total,
        steps=steps,
        minutes=total * seconds / tokens / 60 / processes.size,
        peak_bytes=peak_memory(device) + states,
        micro_batch_size=size,
        why=why,
    )


def _states(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes that the loop allocates at its first step: two moments of every trained weight, and a
    rounded copy for bfloat16."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trained * (12 if dtype == torch.bfloat16 else 8)


def _fitting(wanted: int, one: int, before: int, budget: int) -> int:
    """The largest of wanted, wanted/2, wanted/4 … rows that fit; 0 when not even one does."""
    size = wanted
    while size > 1 and before + one * size > budget:
        size //= 2
    return size if before + one * size <= budget else 0


def _try(
    model: nn.Module, rows: Sequence[Example], objective: Objective, device: torch.device, dtype: torch.dtype
) -> tuple[float, int]:
    """One micro-batch forward and backward: seconds and tokens."""
    began = time.perf_counter()
    batch = collate(rows, device=device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss = step_loss(objective, model, batch).total / max(objective.terms(rows), 1)
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, batch.tokens


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Train the model within the block; afterwards its mode, gradients and the random states are as before."""
    training, state = model.training, torch.get_rng_state()
    device_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    model.train()
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        torch.set_rng_state(state)
        if device_states:
            torch.cuda.set_rng_state_all(device_states)
        gc.collect()
