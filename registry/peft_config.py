"""Owns what an adapter's configuration may say: a LoRA that the engine serves, for this base, whose patterns are safe to evaluate.
Refuses the rest, by name.

The semantics are PEFT's: a module's rank is `rank_pattern`'s first key that matches the end of its name, else `r`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunery.registry.errors import ArtifactRefused
from tunery.registry.records import Base

__all__ = [
    "CONFIG",
    "DIGEST_KEY",
    "REWRITES_BASE",
    "UNSUPPORTED",
    "check_config",
    "check_recorded",
    "is_target",
    "is_whole",
    "rank_of",
    "read_config",
    "token_rows_of",
]

CONFIG = "adapter_config.json"
DIGEST_KEY = "tunery_base_digest"
MAX_CONFIG = 4 * 2**20

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "monteclora_config": (None,),
    "target_parameters": (None, []),
    "use_bdlora": (None, False),
    "use_qalora": (None, False),
    "velora_config": (None,),
}
"""PEFT settings that change the result and that the engine does not apply, with the values that mean "off"."""

REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Initialisations that rewrite the base's weights, so that the saved low-rank pair alone does not mean what was trained."""

# What embeddings are called; PEFT asks the model.
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
# A repeated group can take exponential time to match, many repetitions polynomial time; PEFT's own patterns need neither.
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_MAX_REPETITIONS, _MAX_PATTERN = 3, 500

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_REPACKED = re.compile(r"(-unsloth)?(-bnb-4bit|-bnb-8bit|-4bit|-8bit|-awq|-gptq.*|-gguf|-fp8.*)$")


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in adapter_config.json; raise ArtifactRefused when it is none."""
    size = path.stat().st_size
    if size > MAX_CONFIG:
        raise _incomplete(f"is {size:,} bytes long, which no PEFT configuration is")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _incomplete(f"is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise _incomplete("is not a JSON object")
    return config


def check_config(
    config: Mapping[str, Any], *, base: Base, others: Iterable[Base] = (), trust_base: bool = False
) -> None:
    """Raise ArtifactRefused unless this is a plain LoRA of `base`.

    `others` are the other bases known here. `trust_base` takes an adapter that names another base; its shapes must fit all the same.
    """
    _check_kind(config)
    _check_types(config)
    if not trust_base:
        _check_identity(config, base, others)


def rank_of(module: str, config: Mapping[str, Any]) -> int:
    """The rank that the configuration gives a module."""
    for pattern, rank in (config.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return int(rank)
    return int(config.get("r", 8))


def is_target(module: str, config: Mapping[str, Any]) -> bool:
    """Whether PEFT would put low-rank weights on a module. A pattern in place of a list, or no list at all, is not judged."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        return True
    return any(module == target or module.endswith(f".{target}") for target in targets)


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
    for name, off in UNSUPPORTED.items():
        if config.get(name) not in off:
            raise ArtifactRefused(
                f"{CONFIG} has {name}={_short_of(config[name])}, which the engine does not serve; train it without",
                code="unsupported_adapter",
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(REWRITES_BASE):
        raise ArtifactRefused(
            f"init_lora_weights={start!r} changed the base's own weights; save it as a plain LoRA "
            "(PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...))",
            code="unsupported_adapter",
        )


def _harmless_mapping(mapping: Any) -> bool:
    """PEFT notes the base's class when it is told no task type; harmless as long as the class is transformers' own."""
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    return not mapping or str(library).split(".")[0] == "transformers"


def _check_types(config: Mapping[str, Any]) -> None:
    """What is evaluated later has the type that PEFT gives it."""
    if not _is_rank(config.get("r", 8)):
        raise _incomplete(f"has r={config['r']!r}, which is no rank")
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(field) or {}
        if not isinstance(patterns, dict):
            raise _incomplete(f"has a {field} that is no object")
        for pattern, value in patterns.items():
            _check_pattern(field, pattern)
            if not (_is_rank(value) if field == "rank_pattern" else _is_number(value)):
                raise _incomplete(f"has {value!r} for {pattern!r} in {field}")
    if not _is_number(config.get("lora_alpha", 8)):
        raise _incomplete(f"has lora_alpha={config['lora_alpha']!r}, which is no number")
    for field in ("target_modules", "modules_to_save"):
        names = config.get(field)
        if not (names is None or isinstance(names, str) or _are_words(names)):
            raise _incomplete(f"has {field} that are no list of names")
    if isinstance(config.get("modules_to_save"), str):
        raise _incomplete("has modules_to_save that are no list of names")
    _check_tokens(config.get("trainable_token_indices") or [])


def _check_tokens(indices: object) -> None:
    lists = indices.values() if isinstance(indices, dict) else [indices]
    if not all(map(_are_tokens, lists)):
        raise _incomplete("has trainable_token_indices that are no lists of different token ids")


def _check_pattern(field: str, pattern: str) -> None:
    repetitions = sum(pattern.count(sign) for sign in "*+{")
    if len(pattern) > _MAX_PATTERN or repetitions > _MAX_REPETITIONS or _REPEATED_GROUP.search(pattern):
        raise ArtifactRefused(
            f"{CONFIG} has the pattern {pattern[:60]!r} in {field}, which could take for ever to match; write module names",
            code="artifact_unsafe",
        )
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise _incomplete(f"has {pattern!r} in {field}, which is no pattern: {error}") from error


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


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _are_tokens(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in value)
        and len(set(value)) == len(value)
    )


def _are_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _short_of(value: object) -> str:
    """A value of the configuration as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _incomplete(what: str) -> ArtifactRefused:
    return ArtifactRefused(f"{CONFIG} {what}", code="artifact_incomplete")
