"""List every field of PEFT's LoraConfig (0.21.2): its default, and whether it is applied, ignored or refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tunery.registry.errors import ArtifactRefused

__all__ = ["APPLIED", "DEFAULTS", "FOREIGN", "IGNORED", "REWRITES_BASE", "check_fields", "setting"]

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "task_type": None,
        "peft_type": None,
        "auto_mapping": None,
        "peft_version": None,
        "base_model_name_or_path": None,
        "revision": None,
        "inference_mode": False,
        "r": 8,
        "target_modules": None,
        "exclude_modules": None,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "bias": "none",
        "use_rslora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "trainable_token_indices": None,
        "loftq_config": {},
        "eva_config": None,
        "corda_config": None,
        "lora_ga_config": None,
        "use_dora": False,
        "velora_config": None,
        "alora_invocation_tokens": None,
        "use_qalora": False,
        "qalora_group_size": 16,
        "monteclora_config": None,
        "layer_replication": None,
        "lora_bias": False,
        "target_parameters": None,
        "use_bdlora": None,
        "arrow_config": None,
        "kasa_config": None,
        "ensure_weight_tying": False,
    }
)
"""PEFT's default for a field that the file leaves out. `runtime_config` is never written."""

APPLIED = frozenset(
    {
        "task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "r", "target_modules", "exclude_modules",
        "lora_alpha", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save", "init_lora_weights",
        "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "trainable_token_indices", "use_dora",
        "lora_bias", "ensure_weight_tying",
    }
)  # fmt: skip
"""Fields that are checked, or that decide how the weights are applied."""

IGNORED = frozenset(
    {
        "peft_version", "revision", "inference_mode", "lora_dropout", "megatron_core", "loftq_config", "eva_config",
        "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config",
    }
)  # fmt: skip
"""Fields that say how training began or ran, or that mean something only beside a field that is refused."""

FOREIGN = frozenset({"lora_dtype", "lorap_lr_ratio", "lorap_emb_lr", "merge_weights"})
"""Fields of other trainers and of old versions of PEFT that say how training ran."""

OWN_PREFIX = "tunery_"

REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that rewrite the base's weights, so that the saved pair alone is not what was trained."""

_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", "all", "lora_only"),
    "task_type": (None, "CAUSAL_LM", "FEATURE_EXTRACTION"),
}


def setting(config: Mapping[str, Any], name: str) -> Any:
    """The value of a field; PEFT's default where the file leaves it out or says null."""
    value = config.get(name)
    return DEFAULTS[name] if value is None else value


def check_fields(config: Mapping[str, Any]) -> None:
    """Raise ArtifactRefused naming the first field whose value would change the result and is not applied."""
    for name, value in config.items():
        if name in APPLIED:
            _check_choice(name, value)
        elif name not in IGNORED and name not in FOREIGN and not name.startswith(OWN_PREFIX):
            _check_off(name, value)
    _check_start(config.get("init_lora_weights"))


def _check_off(name: str, value: Any) -> None:
    if _is_off(value) or (name in DEFAULTS and value == DEFAULTS[name]):
        return
    why = "the engine does not serve" if name in DEFAULTS else "is not a setting of PEFT 0.21 that Tunery knows"
    raise _unsupported(f"{name}={_short(value)}, which {why}; train it without")


def _check_choice(name: str, value: Any) -> None:
    if isinstance(DEFAULTS[name], bool) and name != "init_lora_weights" and not isinstance(value, bool | None):
        raise _unsupported(f"{name}={_short(value)}, which is neither true nor false; correct it")
    choices = _CHOICES.get(name)
    if choices is not None and value is not None and value not in choices:
        known = ", ".join(str(choice) for choice in choices if choice is not None)
        raise _unsupported(f"{name}={_short(value)}, which the engine does not serve (it serves {known})")


def _check_start(start: Any) -> None:
    if isinstance(start, bool | None) or (isinstance(start, str) and start.lower() in _PLAIN_STARTS):
        return
    if isinstance(start, str) and start.lower().startswith(REWRITES_BASE):
        raise ArtifactRefused(
            f"init_lora_weights={start!r} changed the base's own weights; save it as a plain LoRA "
            "(PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...))",
            code="unsupported_adapter",
        )
    raise _unsupported(f"init_lora_weights={_short(start)}, which may have changed the base's own weights")


def _is_off(value: Any) -> bool:
    return value is None or (isinstance(value, bool | int | float | str | list | dict) and not value)


def _unsupported(what: str) -> ArtifactRefused:
    return ArtifactRefused(f"adapter_config.json has {what}", code="unsupported_adapter")


def _short(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
