"""Say what each setting is and where that comes from, with secrets masked."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tunery.registry.configuration.settings import Settings, read_settings

__all__ = ["EffectiveSetting", "effective_settings"]

_SECRET = re.compile(r"(?:^|_)(?:secret|password|passphrase|token|credentials?|api_?key|private_?key)$")
_REFERENCE = re.compile(r"(?:env|file):.")
"""A secret that says where it is, rather than what it is."""
_USER = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)")
_MASK = "********"


class EffectiveSetting(msgspec.Struct, frozen=True):
    """A setting's value; `source` is default, config.toml, an environment variable's name, or option."""

    name: str
    value: Any
    source: str


def effective_settings(
    home: Path, *, environ: Mapping[str, str] = os.environ, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> list[EffectiveSetting]:
    """Every setting, by section; raise InvalidInput with every problem at once."""
    settings = read_settings(home, environ=environ, overrides=overrides)
    written = _written(home / "config.toml")
    variables = {name.upper(): name for name in environ}
    found = []
    for section in msgspec.structs.fields(Settings):
        values = getattr(settings, section.name)
        for field in msgspec.structs.fields(section.type):
            variable = variables.get(f"TUNERY_{section.name}_{field.name}".upper())
            if (overrides or {}).get(section.name, {}).get(field.name) is not None:
                source = "option"
            elif variable is not None:
                source = variable
            else:
                source = "config.toml" if field.name in written.get(section.name, {}) else "default"
            value = masked(field.name, msgspec.to_builtins(getattr(values, field.name)))
            found.append(EffectiveSetting(f"{section.name}.{field.name}", value, source))
    return found


def masked(name: str, value: Any) -> Any:
    """A value without the secrets in it: of a field whose name says so, and in front of the host of a URL."""
    if isinstance(value, dict):
        return {key: masked(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(name, item) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET.search(name) and not _REFERENCE.match(value):
        return _MASK
    return _USER.sub(_MASK, value)


def _written(path: Path) -> dict[str, Any]:
    """What the file says, which is known to be valid."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
