"""Owns the settings the engine process is started with; refuses to read the environment."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["EngineConfig"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One engine's settings.

    `adapter_budget` is in bytes. `context_length` and `kv_tokens` 0 mean the model's own and one that follows `max_batch`.
    `eos_ids` end every request that does not ignore them. `threads` 0 leaves the choice to torch.
    """

    base_folder: str
    base_name: str
    base_digest: str
    quant: Literal["nf4", "int8", "none"] = "nf4"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "auto"
    adapter_budget: int = 1 << 30
    max_batch: int = 32
    context_length: int = 0
    kv_tokens: int = 0
    eos_ids: tuple[int, ...] = ()
    threads: int = 0
