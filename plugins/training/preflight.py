"""Owns trying a run before it starts: the longest rows forward and backward, a quote, and smaller micro-batches where they must be.

Memory is measured with one row first and foretold for a whole micro-batch, because a machine that is out of memory kills the
process instead of raising an error. Nothing is changed: gradients are dropped and random states put back.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import nn

from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.training.batches import Example, collate
from tunery.plugins.training.loop import step_count
from tunery.plugins.training.objective import Objective
from tunery.registry.errors import InvalidInput

__all__ = ["Quote", "available_memory", "preflight"]

SPARE = 0.9
"""The share of what is free that a run may plan with."""


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What a run will take: tokens without padding, optimizer steps, minutes, bytes at most; rows at once, and why so many."""

    tokens: int
    steps: int
    minutes: float
    peak_bytes: int
    micro_batch_size: int
    why: str


def preflight(
    model: nn.Module,
    examples: Sequence[Example],
    parameters: TrainingParameters,
    *,
    objective: Objective,
    device: torch.device,
    dtype: torch.dtype,
) -> Quote:
    """Try the longest rows; raise InvalidInput with code `out_of_memory` when not even one row fits."""
    ranked = sorted(examples, key=lambda example: len(example.ids), reverse=True)
    budget = int(parameters.memory_gb * 1e9) or _held(device) + int(SPARE * available_memory(device))
    with _Undisturbed(model):
        before = _held(device)
        _forget_peak()
        _try(model, ranked[:1], objective, device, dtype)
        one = max(_peak(device) - before, 1)
        size = _fitting(parameters.micro_batch_size, one, before, budget)
        if size == 0:
            raise InvalidInput(
                f"the longest row ({len(ranked[0].ids)} tokens, line {ranked[0].line}) needs {(before + one) / 1e9:.2f} GB and "
                f"{budget / 1e9:.2f} GB may be used; lower max_length or choose qlora",
                code="out_of_memory",
            )
        seconds, tokens = _try(model, ranked[:size], objective, device, dtype)
    steps = step_count(parameters, len(examples))
    each = sum(len(example.ids) for example in examples) / len(examples)
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
        minutes=total * seconds / tokens / 60,
        peak_bytes=_peak(device),
        micro_batch_size=size,
        why=why,
    )


def available_memory(device: torch.device) -> int:
    """Bytes that are free for this process: the device's, or the machine's within its control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [_meminfo()]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        most, now = _number(Path(limit)), _number(Path(used))
        if most is not None and now is not None:
            free.append(most - now)
    return max(min(free), 0)


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
        loss = objective.loss(model, batch) / max(objective.terms(rows), 1)
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, batch.tokens


class _Undisturbed:
    """While it is open the model may be tried; afterwards nothing of it is left."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._training = self._model.training
        self._random = torch.get_rng_state()
        self._devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        self._model.train()

    def __exit__(self, *error: object) -> None:
        self._model.zero_grad(set_to_none=True)
        self._model.train(self._training)
        torch.set_rng_state(self._random)
        if self._devices:
            torch.cuda.set_rng_state_all(self._devices)
        gc.collect()


def _held(device: torch.device) -> int:
    """Bytes the process holds now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return _peak(device)
    return pages * resource.getpagesize()


def _peak(device: torch.device) -> int:
    """Bytes the process has held at most, on Linux since `_forget_peak`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> None:
    """Start measuring the process's peak anew, where Linux lets it (proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _meminfo() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return sys.maxsize
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), sys.maxsize)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
