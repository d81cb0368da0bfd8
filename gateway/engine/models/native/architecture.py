"""Read a base's config.json into what the native decoder needs, if it computes that architecture exactly.

The Llama kind: RMS norm before attention and MLP, rotary positions over halves, grouped-query attention, SwiGLU.
Mistral adds a sliding window, Qwen 2 biases, Qwen 3 norms of queries and keys.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import torch

__all__ = ["Architecture", "read_architecture"]

_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
}
"""The architectures that the decoder computes, with transformers' defaults for what a config.json leaves out."""
VECTOR = 16
"""Lanes of the kernels' vectors; head sizes must be multiples."""


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder's sizes and settings.

    `size` is that of a head, `longest` the most positions; `windows` are each layer's sliding window in tokens, 0 for
    none; `inverse_frequencies` [size / 2] are RoPE's, scaled as configured.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    size: int
    vocab_size: int
    longest: int
    epsilon: float
    tied: bool
    qk_norm: bool
    windows: tuple[int, ...]
    inverse_frequencies: tuple[float, ...]


def read_architecture(folder: Path) -> Architecture | None:
    """The architecture of the base in `folder`, or None if the decoder does not compute it."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kind = str(config.get("model_type"))
    config = KINDS.get(kind, {}) | config
    if kind not in KINDS or config.get("hidden_act", "silu") != "silu" or config.get("quantization_config"):
        return None
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    size = int(config.get("head_dim") or hidden // heads)
    frequencies = _frequencies(config, size)
    if frequencies is None or size % VECTOR or hidden % 2 or int(config["intermediate_size"]) % 2:
        return None
    layers = int(config["num_hidden_layers"])
    return Architecture(
        layers=layers,
        hidden=hidden,
        intermediate=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        size=size,
        vocab_size=int(config["vocab_size"]),
        longest=int(config["max_position_embeddings"]),
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        tied=bool(config.get("tie_word_embeddings", False)),
        qk_norm=kind == "qwen3",
        windows=_windows(config, kind, layers),
        inverse_frequencies=frequencies,
    )


def _windows(config: dict[str, Any], kind: str, layers: int) -> tuple[int, ...]:
    """Each layer's sliding window: all layers of Mistral, those of Qwen from one on if enabled, or by `layer_types`."""
    has_one = kind == "mistral" or (kind.startswith("qwen") and bool(config.get("use_sliding_window")))
    window = int(config.get("sliding_window") or 0) if has_one else 0
    if kind == "mistral" or not window:
        return (window,) * layers
    first = int(config.get("max_window_layers") or 0)
    types = config.get("layer_types") or ["sliding_attention" if at >= first else "" for at in range(layers)]
    return tuple(window if one == "sliding_attention" else 0 for one in types)


def _frequencies(config: dict[str, Any], size: int) -> tuple[float, ...] | None:
    """RoPE's inverse frequencies (arXiv 2104.09864), scaled as in transformers; None if they depend on the length."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in rope.values()):
        return None
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if float(rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        return None
    # In float32 and in transformers' order of operations: one bit here is many bits of a late position's angle.
    plain = 1.0 / theta ** (torch.arange(0, size, 2).float() / size)
    if kind == "linear":
        plain = plain / float(rope["factor"])
    elif kind == "llama3":
        plain = _llama3(rope, plain)
    elif kind != "default":
        return None
    return tuple(plain.tolist())


def _llama3(rope: dict[str, Any], frequencies: torch.Tensor) -> torch.Tensor:
    """Llama 3.1's scaling: long wavelengths are stretched, short ones kept, those between interpolated."""
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    context, waves = float(rope["original_max_position_embeddings"]), 2 * math.pi / frequencies
    smooth = (context / waves - low) / (high - low)
    blended = (1 - smooth) * frequencies / factor + smooth * frequencies
    kept = torch.where(waves < context / high, frequencies, blended)
    return torch.where(waves > context / low, frequencies / factor, kept)
