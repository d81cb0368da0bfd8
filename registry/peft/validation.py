"""Check the values of an adapter's configuration before anything evaluates them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.fields import check_fields, setting
from tunery.registry.peft.layout import CONFIG
from tunery.registry.peft.patterns import check_compiles, check_safe

__all__ = ["check_settings"]

_MAX_RANK, _MAX_ALPHA = 2**24, 3.4e38


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise ArtifactRefused, whatever the base, unless the configuration is of a LoRA that the engine applies exactly.

    Codes: unsupported_adapter for a setting that is not applied, artifact_unsafe for code and for patterns that could
    take forever to match, artifact_nonfinite for an alpha that float32 cannot hold, artifact_incomplete for values of
    the wrong type.
    """
    _check_kind(config)
    check_fields(config)
    _check_scale(config)
    _check_names(config)
    _check_layers(config)
    _check_tokens(config.get("trainable_token_indices") or [])


def _check_kind(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ArtifactRefused(
            f"peft_type {config.get('peft_type')!r} is not LORA; convert it (peft.convert_to_lora) or merge it first",
            code="unsupported_adapter",
        )
    if not _is_harmless(config.get("auto_mapping")):
        raise ArtifactRefused(
            "the configuration asks for custom code (auto_mapping), which is never run", code="artifact_unsafe"
        )


def _is_harmless(mapping: Any) -> bool:
    """Whether auto_mapping only notes a class of transformers for the base, as PEFT does without a task type."""
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    return not mapping or str(library).split(".")[0] == "transformers"


def _check_scale(config: Mapping[str, Any]) -> None:
    _check_rank("r", config.get("r", setting(config, "r")))
    for field, check in (("rank_pattern", _check_rank), ("alpha_pattern", _check_alpha)):
        patterns = setting(config, field)
        if not isinstance(patterns, dict):
            raise _incomplete(f"has a {field} that is not an object")
        for pattern, value in patterns.items():
            check_safe(field, pattern)
            check(f"{field}[{pattern!r}]", value)
    _check_alpha("lora_alpha", config.get("lora_alpha", setting(config, "lora_alpha")))
    if config.get("use_dora") and config.get("lora_bias"):
        raise _incomplete("has use_dora beside lora_bias, which PEFT refuses")


def _check_names(config: Mapping[str, Any]) -> None:
    """Lists of names are lists of text; where PEFT also takes a pattern, it is a valid one."""
    for field in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
        names = config.get(field)
        if isinstance(names, str) and field != "modules_to_save":
            check_compiles(field, names)
        elif names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise _incomplete(f"has {field} that are not a list of names")


def _check_layers(config: Mapping[str, Any]) -> None:
    layers = config.get("layers_to_transform")
    if layers is None:
        return
    if not all(_is_index(layer) for layer in (layers if isinstance(layers, list) else [layers])):
        raise _incomplete("has layers_to_transform that are not numbers of layers")
    if isinstance(config.get("target_modules"), str):
        raise _incomplete("has layers_to_transform beside a pattern in target_modules, which PEFT refuses")
    patterns = config.get("layers_pattern") or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        check_safe("layers_pattern", pattern)


def _check_tokens(indices: object) -> None:
    lists = indices.values() if isinstance(indices, dict) else [indices]
    if not all(map(_are_tokens, lists)):
        raise _incomplete("has trainable_token_indices that are not lists of different token ids")


def _check_rank(name: str, value: object) -> None:
    if not _is_index(value) or not 0 < value <= _MAX_RANK:
        raise _incomplete(f"has {name}={_shortened(value)}, which is not a rank")


def _check_alpha(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        raise _incomplete(f"has {name}={_shortened(value)}, which is not a number")
    if abs(value) > _MAX_ALPHA:
        raise ArtifactRefused(
            f"{CONFIG} has {name}={_shortened(value)}, which float32 cannot hold; correct it, or train it again",
            code="artifact_nonfinite",
        )


def _shortened(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_index, value)) and len(set(value)) == len(value)


def _is_index(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _incomplete(what: str) -> ArtifactRefused:
    return ArtifactRefused(f"{CONFIG} {what}", code="artifact_incomplete")
