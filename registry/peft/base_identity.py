"""Tell whether an adapter was trained on a given base, by the digest or the name that came with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tunery.registry.errors import ArtifactRefused
from tunery.registry.records import Base

__all__ = ["DIGEST_KEY", "check_digest", "check_identity"]

DIGEST_KEY = "tunery_base_digest"
"""Where earlier releases wrote the base's digest in an adapter's configuration."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_REPACKED = re.compile(r"(-unsloth)?(-bnb-4bit|-bnb-8bit|-4bit|-8bit|-awq|-gptq.*|-gguf|-fp8.*)$")


def check_identity(config: Mapping[str, Any], base: Base, others: Iterable[Base]) -> None:
    """Raise ArtifactRefused (wrong_base) where a configuration names another base than `base`.

    By digest where one is recorded, else by the name that PEFT recorded; `others` are the other bases known here. A
    name that could be this base's (a local folder, a quantized copy on the Hub) is accepted.
    """
    digest = config.get(DIGEST_KEY)
    check_digest(digest, base)
    if digest is not None:
        return
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or named in (base.name, base.source, base.path):
        return
    for other in others:
        if other.digest != base.digest and named in (other.name, other.source, other.path):
            raise _wrong_base(f"{named} ({other.digest[:12]})", base)
    if _HUB_ID.fullmatch(named) and _HUB_ID.fullmatch(_model(base.source)) and _short(named) != _short(base.source):
        raise _wrong_base(named, base)


def check_digest(digest: object, base: Base) -> None:
    """Raise ArtifactRefused (wrong_base) where the digest that came with an adapter, if any, is another base's."""
    if digest is not None and digest != base.digest:
        raise _wrong_base(f"a base with digest {str(digest)[:12]}", base)


def _wrong_base(named: str, base: Base) -> ArtifactRefused:
    return ArtifactRefused(
        f"it was trained on {named}, and {base.name} is {base.source} ({base.digest[:12]}); name the base it was "
        "trained on, or say that it is the same model under another name (--trust-base)",
        code="wrong_base",
    )


def _model(source: str) -> str:
    return source.partition("@")[0]


def _short(identifier: str) -> str:
    """A model's name without its owner and without the suffix of a quantized copy."""
    return _REPACKED.sub("", _model(identifier).rpartition("/")[2].lower())
