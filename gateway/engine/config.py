"""The settings that the engine process is started with; the environment is not read."""

from __future__ import annotations

from typing import Literal

import msgspec

from tunery.plugins.runtime.log_format import LogFormat, LogLevel

__all__ = ["LOAD_POLL", "EngineConfig"]

LOAD_POLL = 0.002
"""Seconds between looks at running loads while no sequence runs."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one engine.

    `base_folder` has the base's files; `cache_folder`, unless empty, keeps the packed base for the next start. `device`
    is "auto", "cpu" or "cuda". `kernels` "torch" does without the native kernels.

    `adapter_budget` is the memory for resident adapters in bytes, `adapter_ram` that for host copies of evicted ones.
    `max_batch` bounds the running requests, `context_length` (0: the model's own) the tokens of one, `kv_tokens` (0: as
    many as `max_batch` suggests) those of the KV cache, `token_budget` (0: by device) those of one forward pass,
    `background_slots` (0: all) the running requests of the background.

    `eos_ids` end every request that does not ignore them. `tenant_weights` are shares of the engine; a tenant that is
    not named has weight 1. `threads` 0 leaves their number to torch.
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
    background_slots: int = 0
    prefix_cache: bool = True
    tenant_weights: dict[str, float] = {}
    eos_ids: tuple[int, ...] = ()
    threads: int = 0
    log_format: LogFormat = "text"
    log_level: LogLevel = "warning"
    kernels: Literal["auto", "torch"] = "auto"
