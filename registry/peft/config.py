"""Read an adapter's configuration into a typed record that says, as PEFT would, what it means for each module.

A module's rank is the value of the first key of `rank_pattern` that matches the end of its name, else `r`; its alpha
likewise. The fields of PEFT's LoraConfig are interpreted only here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.fields import setting
from tunery.registry.peft.layout import CONFIG
from tunery.registry.peft.patterns import first_match, is_named, is_within, layer_of, paths_of
from tunery.registry.peft.validation import check_settings

__all__ = ["AdapterConfig", "decode_config", "is_vocabulary", "normalised", "parse_config", "read_config"]

MAX_CONFIG = 4 * 2**20
"""Bytes of the largest configuration that is read."""

# What embeddings and heads are called, for where there is no model to ask.
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
_HEADS = ("lm_head", "embed_out")
# Fields that say where and when an adapter was saved, not what it is. The base has its own place in a version's digest.
_INCIDENTAL = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "tunery_base_digest"}
)


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a LoRA that decide how its weights are applied, with PEFT's defaults.

    A name list is a tuple; where PEFT takes a regular expression instead, it is a str. `trainable_token_indices` is by
    module, with the key None for a list that names no module, which means the input embedding.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    use_dora: bool
    lora_bias: bool
    bias: str
    fan_in_fan_out: bool
    ensure_weight_tying: bool
    init_lora_weights: bool | str
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    target_modules: str | tuple[str, ...] | None
    exclude_modules: str | tuple[str, ...] | None
    layers_to_transform: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    trainable_token_indices: dict[str | None, tuple[int, ...]]

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> AdapterConfig:
        """The record of an `adapter_config.json` whose values were checked; `parse_config` does both."""
        tokens = fields.get("trainable_token_indices") or {}
        plain = (
            "r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "bias", "fan_in_fan_out", "ensure_weight_tying",
            "init_lora_weights", "rank_pattern", "alpha_pattern",
        )  # fmt: skip
        return cls(
            **{name: setting(fields, name) for name in plain},
            target_modules=_names(fields.get("target_modules")),
            exclude_modules=_names(fields.get("exclude_modules")),
            layers_to_transform=_listed(fields.get("layers_to_transform")),
            layers_pattern=_listed(fields.get("layers_pattern") or None),
            modules_to_save=tuple(fields.get("modules_to_save") or ()),
            trainable_token_indices={
                name: tuple(ids) for name, ids in (tokens if isinstance(tokens, dict) else {None: tokens}).items()
            },
        )

    @property
    def has_whole_weights(self) -> bool:
        """Whether more than low-rank pairs was trained: whole modules, token rows or biases."""
        return bool(self.modules_to_save or self.trainable_token_indices) or self.bias != "none"

    def rank_of(self, module: str) -> int:
        """The rank of a module's pair."""
        return first_match(module, self.rank_pattern, self.r)

    def scale_of(self, module: str) -> float:
        """What a module's product B A is multiplied by: alpha/r, or alpha/√r with rsLoRA (arXiv 2312.03732)."""
        alpha, rank = float(first_match(module, self.alpha_pattern, self.lora_alpha)), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def is_target(self, module: str) -> bool:
        """Whether PEFT would give a module a low-rank pair.

        True where there is no list at all, or a pattern that could take forever to match.
        """
        targets = self.target_modules
        if is_named(module, self.exclude_modules, default=False) or is_within(module, self.modules_to_save):
            return False
        if isinstance(targets, str) and targets.lower() == "all-linear":
            return module.rpartition(".")[2] not in (*_EMBEDDINGS, *_HEADS)
        if isinstance(targets, str) or not targets:
            return is_named(module, targets, default=True)
        # A whole name counts on any layer.
        return module in targets or (is_named(module, targets, default=True) and self._is_on_layer(module))

    def loads_whole(self, parameter: str) -> bool:
        """Whether PEFT would load a whole parameter: of or within a module to save, a trained bias, an embedding."""
        module, _, leaf = parameter.rpartition(".")
        if leaf == "bias" and self.bias != "none":
            return True
        # PEFT compares the bare end of the name: `norm` is every module whose name ends in it.
        return any(path.endswith((*self.modules_to_save, "embed_tokens", "lm_head")) for path in paths_of(module))

    def token_ids_of(self, module: str, *, embedding: str | None = None) -> tuple[int, ...] | None:
        """The ids of the tokens whose rows of a module were trained, or None.

        `embedding` is the name of the input embedding, where the model is there to say so.
        """
        unnamed = _EMBEDDINGS if embedding is None else (embedding,)
        for name, ids in self.trainable_token_indices.items():
            if is_named(module, unnamed if name is None else (name,), default=False):
                return ids
        return None

    def _is_on_layer(self, module: str) -> bool:
        return not self.layers_to_transform or layer_of(module, self.layers_pattern) in self.layers_to_transform


def decode_config(data: bytes) -> dict[str, Any]:
    """The JSON object in `adapter_config.json`'s bytes; raise ArtifactRefused (artifact_incomplete) for none."""
    _check_size(len(data))
    try:
        config = json.loads(data.decode())
        msgspec.json.encode(config)  # half a surrogate can be read, and not be written again
    except (ValueError, OverflowError, RecursionError) as error:
        raise _incomplete(f"is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise _incomplete("is not a JSON object")
    return config


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file; see `decode_config`."""
    _check_size(path.stat().st_size)
    return decode_config(path.read_bytes())


def parse_config(fields: Mapping[str, Any]) -> AdapterConfig:
    """Check the fields of a configuration and make them a record; raise ArtifactRefused as `check_settings` does."""
    check_settings(fields)
    return AdapterConfig.from_fields(fields)


def normalised(fields: Mapping[str, Any]) -> bytes:
    """A configuration as bytes that are equal when it means the same adapter; part of a version's digest."""
    kept = {name: value for name, value in fields.items() if name not in _INCIDENTAL and value is not None}
    for name in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(kept.get(name), list):
            kept[name] = sorted(kept[name])
    return msgspec.json.encode(kept, order="deterministic")


def is_vocabulary(name: str) -> bool:
    """Whether a module or parameter has a row for each token: an embedding or an output head."""
    return any(part in (*_EMBEDDINGS, *_HEADS) for part in name.split("."))


def _check_size(size: int) -> None:
    if size > MAX_CONFIG:
        raise _incomplete(f"is {size:,} bytes long, too long for a PEFT configuration")


def _names(value: Any) -> str | tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) else value


def _listed(value: Any) -> tuple[Any, ...]:
    """One value or a list of them as a tuple; empty for None."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _incomplete(what: str) -> ArtifactRefused:
    return ArtifactRefused(f"{CONFIG} {what}", code="artifact_incomplete")
