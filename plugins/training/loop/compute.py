"""What a run computes with: its device, its dtypes, and the processes that share the work."""

from __future__ import annotations

import msgspec
import torch

from tunery.plugins.training.loop.distributed import ProcessGroup

__all__ = ["ComputeContext"]


class ComputeContext(msgspec.Struct, frozen=True, kw_only=True):
    """Steps compute in `dtype`; losses and log-probabilities are measured in `measured_dtype`.

    `memory_limit` is how many bytes the process may use at most, None for what is free.
    """

    device: torch.device
    dtype: torch.dtype
    measured_dtype: torch.dtype
    processes: ProcessGroup = msgspec.field(default_factory=ProcessGroup)
    memory_limit: int | None = None
