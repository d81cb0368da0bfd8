"""Owns what an adapter's configuration may say: a LoRA that the engine serves, for this base, whose patterns are safe to evaluate.
Refuses the rest, by name.

The semantics are PEFT's: a module's rank is `rank_pattern`'s first key that matches the end of its name, else `r`.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.fields import check_fields, setting
from tunery.registry.records import Base

__all__ = [
    "CONFIG",
    "DIGEST_KEY",
    "check_config",
    "check_recorded",
    "check_settings",
    "is_target",
    "is_vocabulary",
    "is_whole",
    "normalised",
    "rank_of",
    "read_config",
    "scale_of",
    "token_rows_of",
]

CONFIG = "adapter_config.json"
DIGEST_KEY = "tunery_base_digest"
MAX_CONFIG = 4 * 2**20

# What embeddings are called; PEFT asks the model.
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
_HEADS = ("lm_head", "embed_out")
# A repeated group can take exponential time to match, many repetitions polynomial time; PEFT's own patterns need neither.
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_MAX_REPETITIONS, _MAX_PATTERN = 3, 500
_MAX_RANK, _MAX_ALPHA = 2**24, 3.4e38

# Fields that say where and when an adapter was saved, not what it is. The base has its own place in a version's digest.
_INCIDENTAL = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "tunery_base_digest"}
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_REPACKED = re.compile(r"(-unsloth)?(-bnb-4bit|-bnb-8bit|-4bit|-8bit|-awq|-gptq.*|-gguf|-fp8.*)$")


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in adapter_config.json; raise ArtifactRefused when it is none."""
    size = path.stat().st_size
    if size > MAX_CONFIG:
        raise _incomplete(f"is {size:,} bytes long, which no PEFT configuration is")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        msgspec.json.encode(config)  # half a surrogate can be read, and not be written again
    except (ValueError, OverflowError, RecursionError) as error:
        raise _incomplete(f"is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise _incomplete("is not a JSON object")
    return config


def normalised(config: Mapping[str, Any]) -> bytes:
    """The configuration as bytes that are equal when it means the same adapter; part of a version's digest."""
    kept = {name: value for name, value in config.items() if name not in _INCIDENTAL and value is not None}
    for name in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(kept.get(name), list):
            kept[name] = sorted(kept[name])
    return msgspec.json.encode(kept, order="deterministic")


def check_config(
    config: Mapping[str, Any], *, base: Base, others: Iterable[Base] = (), trust_base: bool = False
) -> None:
    """Raise ArtifactRefused unless this is a plain LoRA of `base`.

    `others` are the other bases known here. `trust_base` takes an adapter that names another base; its shapes must fit all the same.
    """
    check_settings(config)
    if not trust_base:
        _check_identity(config, base, others)


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise ArtifactRefused, whatever the base, unless the configuration is of a LoRA that the engine applies exactly."""
    _check_kind(config)
    check_fields(config)
    _check_types(config)


def rank_of(module: str, config: Mapping[str, Any]) -> int:
    """The rank that the configuration gives a module."""
    return int(_pattern_value(module, "rank_pattern", config, setting(config, "r")))


def scale_of(module: str, config: Mapping[str, Any]) -> float:
    """PEFT's scaling of a module's product: alpha/r, or alpha/sqrt(r) with rsLoRA (arXiv 2312.03732)."""
    alpha = float(_pattern_value(module, "alpha_pattern", config, setting(config, "lora_alpha")))
    rank = rank_of(module, config)
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def is_target(module: str, config: Mapping[str, Any]) -> bool:
    """Whether PEFT would put low-rank weights on a module.

    Where there is no list at all, or a pattern that could take for ever to match, the module is taken for one.
    """
    targets = config.get("target_modules")
    if _is_named(module, config.get("exclude_modules"), default=False) or _is_saved(module, config):
        return False
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return module.rpartition(".")[2] not in (*_EMBEDDINGS, *_HEADS)
    if not isinstance(targets, list) or not targets:
        return _is_named(module, targets, default=True)
    # A whole name counts on any layer.
    return module in targets or (_is_named(module, targets, default=True) and _is_transformed(module, config))


def _is_named(module: str, names: object, *, default: bool) -> bool:
    """Whether a list names the end of a module's name, or a pattern matches all of it."""
    if isinstance(names, str) and names and _is_safe(names):
        return re.fullmatch(names, module) is not None
    if not isinstance(names, list) or not names:
        return default
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_saved(module: str, config: Mapping[str, Any]) -> bool:
    """Whether a module is one of those that are saved whole, or within one."""
    parts = module.split(".")
    paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return any(
        path == name or path.endswith(f".{name}") for path in paths for name in config.get("modules_to_save") or ()
    )


def _is_transformed(module: str, config: Mapping[str, Any]) -> bool:
    """Whether `layers_to_transform` has a module's layer; the first number in its name says which that is."""
    layers, names = config.get("layers_to_transform"), config.get("layers_pattern") or [r"[^.]*"]
    if layers is None or layers == []:
        return True
    for name in [names] if isinstance(names, str) else names:
        match = re.match(rf"(?:^|.*?\.){name}\.(?P<index>\d+)\.", module)
        if match:
            return int(match["index"]) in (layers if isinstance(layers, list) else [layers])
    return False


def _pattern_value(module: str, field: str, config: Mapping[str, Any], default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, as PEFT looks it up."""
    for pattern, value in setting(config, field).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def is_whole(parameter: str, config: Mapping[str, Any]) -> bool:
    """Whether PEFT would load a whole parameter: of a module to save or within one, a trained bias, or an embedding."""
    module, _, leaf = parameter.rpartition(".")
    if leaf == "bias" and config.get("bias", "none") != "none":
        return True
    names = [*(config.get("modules_to_save") or ()), "embed_tokens", "lm_head"]
    parts = module.split(".")
    paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
    # PEFT compares the bare end of the name: `norm` is every module whose name ends so.
    return any(path.endswith(name) for path in paths for name in names)


def is_vocabulary(name: str) -> bool:
    """Whether a module or parameter has a row for each token: an embedding or an output head."""
    return any(part in (*_EMBEDDINGS, *_HEADS) for part in name.split("."))


def token_rows_of(module: str, config: Mapping[str, Any]) -> list[int] | None:
    """The token ids whose rows of `module` were trained, or None; a list without names is the embedding's."""
    indices = config.get("trainable_token_indices") or {}
    if isinstance(indices, list):
        indices = dict.fromkeys(_EMBEDDINGS, indices)
    return next((ids for name, ids in indices.items() if module == name or module.endswith(f".{name}")), None)


def _check_kind(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ArtifactRefused(
            f"peft_type {config.get('peft_type')!r} is not LORA; convert it (peft.convert_to_lora) or merge it first",
            code="unsupported_adapter",
        )
    if not _harmless_mapping(config.get("auto_mapping")):
        raise ArtifactRefused(
            "the configuration asks for custom code (auto_mapping), which is never run", code="artifact_unsafe"
        )


def _harmless_mapping(mapping: Any) -> bool:
    """PEFT notes the base's class when it is told no task type; harmless as long as the class is transformers' own."""
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    return not mapping or str(library).split(".")[0] == "transformers"


def _check_types(config: Mapping[str, Any]) -> None:
    """What is evaluated later has the type that PEFT gives it."""
    _check_rank("r", config.get("r", setting(config, "r")))
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = setting(config, field)
        if not isinstance(patterns, dict):
            raise _incomplete(f"has a {field} that is no object")
        for pattern, value in patterns.items():
            _check_pattern(field, pattern)
            check = _check_rank if field == "rank_pattern" else _check_alpha
            check(f"{field}[{pattern!r}]", value)
    _check_alpha("lora_alpha", config.get("lora_alpha", setting(config, "lora_alpha")))
    if config.get("use_dora") and config.get("lora_bias"):
        raise _incomplete("has use_dora beside lora_bias, which PEFT refuses")
    _check_names(config)
    _check_layers(config)
    _check_tokens(config.get("trainable_token_indices") or [])


def _check_names(config: Mapping[str, Any]) -> None:
    """Lists of names are lists; where PEFT also takes a pattern, it is one."""
    for field in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
        names = config.get(field)
        if isinstance(names, str) and field != "modules_to_save":
            _check_compiles(field, names)
        elif names is not None and not _are_words(names):
            raise _incomplete(f"has {field} that are no list of names")


def _check_layers(config: Mapping[str, Any]) -> None:
    layers = config.get("layers_to_transform")
    if layers is None:
        return
    if not all(_is_index(layer) for layer in (layers if isinstance(layers, list) else [layers])):
        raise _incomplete("has layers_to_transform that are no numbers of layers")
    if isinstance(config.get("target_modules"), str):
        raise _incomplete("has layers_to_transform beside a pattern in target_modules, which PEFT refuses")
    patterns = config.get("layers_pattern") or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        _check_pattern("layers_pattern", pattern)


def _check_tokens(indices: object) -> None:
    lists = indices.values() if isinstance(indices, dict) else [indices]
    if not all(map(_are_tokens, lists)):
        raise _incomplete("has trainable_token_indices that are no lists of different token ids")


def _check_pattern(field: str, pattern: str) -> None:
    if not _is_safe(pattern):
        raise ArtifactRefused(
            f"{CONFIG} has the pattern {pattern[:60]!r} in {field}, which could take for ever to match; write module names",
            code="artifact_unsafe",
        )
    _check_compiles(field, pattern)


def _is_safe(pattern: str) -> bool:
    """Whether matching takes a bounded time for sure."""
    repetitions = sum(pattern.count(sign) for sign in "*+{")
    return len(pattern) <= _MAX_PATTERN and repetitions <= _MAX_REPETITIONS and not _REPEATED_GROUP.search(pattern)


def _check_compiles(field: str, pattern: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what may mean something else in a later Python
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise _incomplete(f"has {pattern[:60]!r} in {field}, which is no pattern: {error}") from error


def _check_identity(config: Mapping[str, Any], base: Base, others: Iterable[Base]) -> None:
    """By digest where we recorded one, else by the name that PEFT recorded."""
    recorded = config.get(DIGEST_KEY)
    check_recorded(recorded, base)
    if recorded is not None:
        return
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or named in (base.name, base.source, base.path):
        return
    for other in others:
        if other.digest != base.digest and named in (other.name, other.source, other.path):
            raise _other_base(f"{named} ({other.digest[:12]})", base)
    if _HUB_ID.fullmatch(named) and _HUB_ID.fullmatch(_model(base.source)) and _short(named) != _short(base.source):
        raise _other_base(named, base)


def check_recorded(digest: object, base: Base) -> None:
    """Raise ArtifactRefused when another base's digest is recorded with an adapter; None is no record."""
    if digest is not None and digest != base.digest:
        raise _other_base(f"a base with digest {str(digest)[:12]}", base)


def _other_base(named: str, base: Base) -> ArtifactRefused:
    return ArtifactRefused(
        f"it was trained on {named}, and {base.name} is {base.source} ({base.digest[:12]}); name the base it was trained on, "
        "or say that it is the same model under another name (--trust-base)",
        code="wrong_base",
    )


def _model(source: str) -> str:
    return source.partition("@")[0]


def _short(identifier: str) -> str:
    """A model's name without its owner and without the ending of a quantized copy."""
    return _REPACKED.sub("", _model(identifier).rpartition("/")[2].lower())


def _check_rank(name: str, value: object) -> None:
    if not _is_index(value) or not 0 < value <= _MAX_RANK:
        raise _incomplete(f"has {name}={_shown(value)}, which is no rank")


def _check_alpha(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        raise _incomplete(f"has {name}={_shown(value)}, which is no number")
    if abs(value) > _MAX_ALPHA:
        raise ArtifactRefused(
            f"{CONFIG} has {name}={_shown(value)}, which float32 cannot hold; correct it, or train it again",
            code="artifact_nonfinite",
        )


def _shown(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


def _are_tokens(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in value)
        and len(set(value)) == len(value)
    )


def _is_index(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _incomplete(what: str) -> ArtifactRefused:
    return ArtifactRefused(f"{CONFIG} {what}", code="artifact_incomplete")
