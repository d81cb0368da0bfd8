"""Load a base's weights in the native kernels' layout, from its checkpoint or from the packed copy of an earlier start.

The quantized and packed weights are kept in one file per base, quantization and dtype, which the next start maps
straight into memory. The file's name ends with the digest of its bytes. A file that does not match its digest is packed
again from the base, whose own files are compared with the base's digest then.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.models.native.architecture import Architecture
from tunery.gateway.engine.models.native.weight_layout import Format, PackedWeight, pack_dense, pack_int8, pack_nf4
from tunery.registry.base_files import changed_files, damaged
from tunery.registry.errors import ArtifactRefused
from tunery.registry.storage.digest import tree_digest
from tunery.registry.storage.disk import sync
from tunery.registry.storage.leases import shared

__all__ = ["EMBEDDING", "HEAD", "NORM", "Weights", "layer_targets", "load_weights"]

log = logging.getLogger("tunery.engine")

EMBEDDING, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"
LAYOUT = 1
"""Version of the packed files' layout; change it with the layout."""


class Weights(NamedTuple):
    """Linear layers by module name, and everything else (norms; an embedding that is not tied) by parameter name."""

    linear: dict[str, PackedWeight]
    other: dict[str, torch.Tensor]


def layer_targets(layer: int) -> list[str]:
    """Names of a decoder layer's linear layers, in the order of LoRA tables and grouped by their input."""
    attention = [f"model.layers.{layer}.self_attn.{name}_proj" for name in ("q", "k", "v", "o")]
    return attention + [f"model.layers.{layer}.mlp.{name}_proj" for name in ("gate", "up", "down")]


def load_weights(config: EngineConfig, architecture: Architecture, dtype: torch.dtype) -> Weights:
    """The base's weights, packed; from the packed file where there is one."""
    for packed in _packed_files(config):
        with contextlib.suppress(SafetensorError, OSError, KeyError, ValueError):
            if tree_digest(packed) == packed.stem.rpartition("-")[2]:
                return _read(packed)
        log.warning("the packed base %s is damaged; packing the base again", packed.name)
    _check_base(config)
    weights = _pack(config, architecture, dtype)
    if config.cache_folder:
        # Serving goes on without the file; the next start tries again.
        with contextlib.suppress(OSError):
            _write(config, weights)
    return weights


def _check_base(config: EngineConfig) -> None:
    """Raise StorageFailed if the base's folder is named by its digest and its files do not match it."""
    folder, digest = Path(config.base_folder), config.base_digest
    if folder.name == digest:
        record = Path(config.cache_folder or folder.parent) / f"{digest}-checked.json"
        wrong = changed_files(folder, digest, record, whole=True)
        if wrong:
            raise damaged(config.base_name, wrong)


def _pack(config: EngineConfig, architecture: Architecture, dtype: torch.dtype) -> Weights:
    pack = {"nf4": pack_nf4, "int8": pack_int8, "none": pack_dense}[config.quant]
    linear: dict[str, PackedWeight] = {}
    other: dict[str, torch.Tensor] = {}
    with _Checkpoint(Path(config.base_folder), config.base_name) as checkpoint:
        for layer in range(architecture.layers):
            for name in layer_targets(layer):
                linear[name] = pack(checkpoint(f"{name}.weight").to(dtype), checkpoint.maybe(f"{name}.bias"))
            for norm in checkpoint.below(f"model.layers.{layer}.", suffix="norm.weight"):
                other[norm] = checkpoint(norm).float()
        other[f"{NORM}.weight"] = checkpoint(f"{NORM}.weight").float()
        embedding = checkpoint(f"{EMBEDDING}.weight").to(dtype)
        if architecture.tied:
            linear[HEAD] = pack_dense(embedding)
        else:
            other[f"{EMBEDDING}.weight"] = embedding
            linear[HEAD] = pack_dense(checkpoint(f"{HEAD}.weight").to(dtype), checkpoint.maybe(f"{HEAD}.bias"))
    return Weights(linear, other)


class _Checkpoint:
    """The safetensors files of a folder, read as one."""

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
            raise ArtifactRefused(f"the base {self._name!r} has no {name}; download it again", code="unsupported_base")
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def maybe(self, name: str) -> torch.Tensor | None:
        return self(name) if name in self._files else None

    def below(self, prefix: str, *, suffix: str) -> Iterator[str]:
        return (name for name in self._files if name.startswith(prefix) and name.endswith(suffix))


# -- the packed file --------------------------------------------------------------------------------------------------


def _prefix(config: EngineConfig) -> str:
    return f"{config.base_digest}-{config.quant}-{config.dtype}-{LAYOUT}"


def _packed_files(config: EngineConfig) -> list[Path]:
    return sorted(Path(config.cache_folder).glob(f"{_prefix(config)}-*.safetensors")) if config.cache_folder else []


def _write(config: EngineConfig, weights: Weights) -> None:
    """Write the packed file, all of it or nothing, and remove the ones before it."""
    tensors, shapes = dict(weights.other), {}
    for name, packed in weights.linear.items():
        shapes[name] = [int(packed.format), packed.n, packed.k, packed.group]
        parts: Mapping[str, torch.Tensor | None] = {"data": packed.data, "scales": packed.scales, "bias": packed.bias}
        tensors |= {f"{name}:{part}": tensor for part, tensor in parts.items() if tensor is not None}
    folder = Path(config.cache_folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = [*_packed_files(config), folder / f"{_prefix(config)}.safetensors"]
    handle, name = tempfile.mkstemp(dir=folder, prefix=".packing-")
    os.close(handle)
    temporary = Path(name)
    try:
        with shared(temporary):  # otherwise garbage collection could take it for a leftover
            save_file(tensors, temporary, metadata={"linear": json.dumps(shapes)})
            sync(temporary)
            final = folder / f"{_prefix(config)}-{tree_digest(temporary)}.safetensors"
            temporary.rename(final)
            sync(folder)
    finally:
        temporary.unlink(missing_ok=True)
    for path in before:
        if path != final:
            path.unlink(missing_ok=True)


def _read(path: Path) -> Weights:
    with safe_open(path, framework="pt") as opened:
        shapes = json.loads((opened.metadata() or {})["linear"])
    tensors = load_file(path)
    linear = {
        name: PackedWeight(
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
    return Weights(linear, tensors)
