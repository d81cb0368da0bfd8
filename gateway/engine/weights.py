"""Owns getting a base's weights into the native kernels' layout, and keeping them so; refuses half a model.

What quantizing and packing gave is kept in a file per base, quantization and dtype, from which the next start maps it straight into
memory. A file that is not whole is made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tunery.gateway.engine.architecture import Architecture
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.packing import Format, Packed, dense, int8, nf4
from tunery.registry.errors import ArtifactRefused

__all__ = ["EMBEDDING", "HEAD", "NORM", "Weights", "layer_targets", "load_weights"]

EMBEDDING, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"
LAYOUT = 1
"""Of the kept files; another layout needs another number."""

Weights = tuple[dict[str, Packed], dict[str, torch.Tensor]]
"""Linear layers by name, and everything else (norms; an embedding of its own) by parameter name."""


def layer_targets(layer: int) -> list[str]:
    """The linear layers of a decoder layer, those that share an input side by side."""
    attention = [f"model.layers.{layer}.self_attn.{name}_proj" for name in ("q", "k", "v", "o")]
    return attention + [f"model.layers.{layer}.mlp.{name}_proj" for name in ("gate", "up", "down")]


def load_weights(config: EngineConfig, architecture: Architecture, dtype: torch.dtype) -> Weights:
    """The base's weights, packed; from the kept file where there is one."""
    kept = _kept_file(config)
    if kept is not None and kept.is_file():
        with contextlib.suppress(SafetensorError, OSError, KeyError, ValueError):
            return _read(kept)
    weights = _pack(config, architecture, dtype)
    if kept is not None:
        # Serving goes on without the file; whoever starts next tries again.
        with contextlib.suppress(OSError):
            _write(kept, weights)
    return weights


def _pack(config: EngineConfig, architecture: Architecture, dtype: torch.dtype) -> Weights:
    quantize = {"nf4": nf4, "int8": int8, "none": dense}[config.quant]
    linear: dict[str, Packed] = {}
    other: dict[str, torch.Tensor] = {}
    with _Checkpoint(Path(config.base_folder), config.base_name) as checkpoint:
        for layer in range(architecture.layers):
            for name in layer_targets(layer):
                linear[name] = quantize(checkpoint(f"{name}.weight").to(dtype), checkpoint.maybe(f"{name}.bias"))
            for norm in checkpoint.below(f"model.layers.{layer}.", suffix="norm.weight"):
                other[norm] = checkpoint(norm).float()
        other[f"{NORM}.weight"] = checkpoint(f"{NORM}.weight").float()
        embedding = checkpoint(f"{EMBEDDING}.weight").to(dtype)
        if architecture.tied:
            linear[HEAD] = dense(embedding)
        else:
            other[f"{EMBEDDING}.weight"] = embedding
            linear[HEAD] = dense(checkpoint(f"{HEAD}.weight").to(dtype), checkpoint.maybe(f"{HEAD}.bias"))
    return linear, other


class _Checkpoint:
    """The safetensors files of a folder as one."""

    def __init__(self, folder: Path, name: str) -> None:
        self._name = name
        self._stack = contextlib.ExitStack()
        self._files: dict[str, safe_open] = {}
        for path in sorted(folder.glob("*.safetensors")):
            opened = self._stack.enter_context(safe_open(path, framework="pt"))
            self._files |= dict.fromkeys(opened.keys(), opened)

    def __enter__(self) -> _Checkpoint:
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()

    def __call__(self, name: str) -> torch.Tensor:
        if name not in self._files:
            raise ArtifactRefused(f"the base {self._name!r} has no {name}; get it again", code="unsupported_base")
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def maybe(self, name: str) -> torch.Tensor | None:
        return self(name) if name in self._files else None

    def below(self, prefix: str, *, suffix: str) -> Iterator[str]:
        return (name for name in self._files if name.startswith(prefix) and name.endswith(suffix))


# -- the kept file ----------------------------------------------------------------------------------------------------


def _kept_file(config: EngineConfig) -> Path | None:
    if not config.cache_folder:
        return None
    name = f"{config.base_digest}-{config.quant}-{config.dtype}-{LAYOUT}.safetensors"
    return Path(config.cache_folder) / name


def _write(path: Path, weights: Weights) -> None:
    """Write all or nothing."""
    linear, other = weights
    tensors, shapes = dict(other), {}
    for name, packed in linear.items():
        shapes[name] = [int(packed.format), packed.n, packed.k, packed.group]
        parts: Mapping[str, torch.Tensor | None] = {"data": packed.data, "scales": packed.scales, "bias": packed.bias}
        tensors |= {f"{name}:{part}": tensor for part, tensor in parts.items() if tensor is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".packing-")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"linear": json.dumps(shapes)})
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _read(path: Path) -> Weights:
    with safe_open(path, framework="pt") as opened:
        shapes = json.loads((opened.metadata() or {})["linear"])
    tensors = load_file(path)
    linear = {
        name: Packed(
            Format(kind),
            n,
            k,
            tensors.pop(f"{name}:data"),
            tensors.pop(f"{name}:scales", None),
            group,
            tensors.pop(f"{name}:bias", None),
        )
        for name, (kind, n, k, group) in shapes.items()
    }
    return linear, tensors
