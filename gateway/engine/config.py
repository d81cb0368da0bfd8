"""Owns the settings the engine process is started with; refuses to read the environment."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["EngineConfig"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One engine's settings.

    `cache_folder`, unless empty, is where the packed base is kept for the next start. `adapter_budget` (resident) and `adapter_ram` (evicted, kept in main memory) are in bytes. `context_length` and `kv_tokens` 0
    mean the model's own and one that follows `max_batch`; `token_budget` is the most tokens of one step, 0 for a choice by
    device. `eos_ids` end every request that does not ignore them. `tenant_weights` are shares of the engine, 1 for whom they do
    not name. `threads` 0 leaves the choice to torch; `kernels` "torch" does without the native ones.
    """

    base_folder: str
    base_name: str
    base_digest: str
    cache_folder: str = ""
    quant: Literal["nf4", "int8", "none"] = "nf4"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "auto"
    adapter_budget: int = 1 << 30
    adapter_ram: int = 0
    max_batch: int = 32
    context_length: int = 0
    kv_tokens: int = 0
    token_budget: int = 0
    prefix_cache: bool = True
    tenant_weights: dict[str, float] = {}
    eos_ids: tuple[int, ...] = ()
    threads: int = 0
    kernels: Literal["auto", "torch"] = "auto"
