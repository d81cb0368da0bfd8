"""Parse and check the names of adapters, aliases, versions and files, and name the scopes. Nothing that could be a path
is accepted.

A reference is what a caller writes: `acme/support` (its `production` alias, or the newest version while
it has none), `acme/support@3` or `acme/support@canary`. A composition is several of them with weights:
`acme/tone:0.5+acme/facts@3`.
"""

from __future__ import annotations

import math
import re

import msgspec

from tunery.registry.errors import InvalidInput

__all__ = [
    "PRODUCTION",
    "SCOPES",
    "Part",
    "Reference",
    "check_adapter",
    "check_alias",
    "file_name",
    "parse_composition",
    "parse_reference",
    "tenant_of",
]

PRODUCTION = "production"
SCOPES = ("infer", "train", "publish", "metrics", "admin")
"""`infer` asks models; `train` has files, jobs, batches and evaluations; `publish` moves aliases and deletes models;
`metrics` reads /metrics, as Prometheus does; `admin` manages keys and sees all tenants."""
MAX_PARTS, MAX_WEIGHT = 8, 10.0
MAX_DIGITS = 18
"""Digits of a version's number, which is stored in 64 bits."""

MAX_FILE_NAME = 255
"""Bytes of a file's name, as file systems have them."""
_UNPRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""Control characters, and those that turn the direction of a text around."""

_WORD = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
_ADAPTER = re.compile(rf"{_WORD}/{_WORD}")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
# No plus sign, not even in an exponent: it is what joins the parts.
_WEIGHT = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]-?[0-9]+)?")


class Reference(msgspec.Struct, frozen=True):
    """A parsed reference: at most one of `number` and `alias` is set."""

    adapter: str
    number: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        pin = self.number if self.number is not None else self.alias
        return self.adapter if pin is None else f"{self.adapter}@{pin}"


class Part(msgspec.Struct, frozen=True):
    """One adapter of a composition, and the weight that its correction has there."""

    reference: Reference
    weight: float = 1.0

    def __str__(self) -> str:
        return str(self.reference) if self.weight == 1.0 else f"{self.reference}:{self.weight!r}"


def check_adapter(name: str) -> str:
    """Return `name` when it is a valid adapter name `tenant/name`; raise InvalidInput otherwise."""
    if _ADAPTER.fullmatch(name) is None or ".." in name:
        raise InvalidInput(
            f"{name!r} is not an adapter name: write tenant/name in lower-case letters, digits, '.', '_' and '-', "
            "for example acme/support",
            code="invalid_name",
        )
    return name


def check_alias(alias: str) -> str:
    """Return `alias` when it is valid (a word that starts with a letter); raise InvalidInput otherwise."""
    if _ALIAS.fullmatch(alias) is None:
        raise InvalidInput(
            f"{alias!r} is not an alias: write a lower-case word that starts with a letter, for example canary",
            code="invalid_name",
        )
    return alias


def file_name(name: str) -> str:
    """Only the last component of a file's name, whatever the client's system writes before it, with _ for what is no
    character of a line."""
    last = _UNPRINTED.sub("_", name.replace("\\", "/").rpartition("/")[2])
    short = last.encode(errors="replace")[:MAX_FILE_NAME].decode(errors="ignore")
    return short if short.strip(".") else "upload"


def tenant_of(adapter: str) -> str:
    """The tenant half of `tenant/name`."""
    return adapter.partition("/")[0]


def parse_reference(text: str) -> Reference:
    """Read `tenant/name`, `tenant/name@3` or `tenant/name@canary`; raise InvalidInput otherwise."""
    adapter, at, pin = text.partition("@")
    check_adapter(adapter)
    if not at:
        return Reference(adapter)
    if pin.isascii() and pin.isdigit():
        if len(pin) > MAX_DIGITS:
            raise InvalidInput(
                f"{adapter}@{pin[:MAX_DIGITS]}… does not exist: no version number is that long", code="invalid_name"
            )
        if int(pin) < 1:
            raise InvalidInput(f"{text!r}: version numbers start at 1", code="invalid_name")
        return Reference(adapter, number=int(pin))
    return Reference(adapter, alias=check_alias(pin))


def parse_composition(text: str) -> tuple[Part, ...]:
    """Read `acme/tone:0.5+acme/facts`, references with a weight or (for 1) without; a single reference is one part.

    Raises InvalidInput: code `invalid_name` for what is not a reference, else `invalid_composition`.
    """
    spelled = text.split("+")
    if len(spelled) > MAX_PARTS:
        raise InvalidInput(f"a composition has at most {MAX_PARTS} adapters", code="invalid_composition")
    parts = tuple(map(_part, spelled))
    seen: set[str] = set()
    for name in (str(part.reference) for part in parts):
        if name in seen:
            raise InvalidInput(f"{name} is in the composition twice; add its weights", code="invalid_composition")
        seen.add(name)
    return parts


def _part(text: str) -> Part:
    spelled, colon, weight = text.partition(":")
    reference = parse_reference(spelled)
    return Part(reference, _weight(spelled, weight)) if colon else Part(reference)


def _weight(reference: str, text: str) -> float:
    weight = float(text) if len(text) <= 32 and _WEIGHT.fullmatch(text) else math.nan
    if not 0 < abs(weight) <= MAX_WEIGHT:
        raise InvalidInput(
            f"{text[:32]!r} is not a weight for {reference}: write a number other than 0, from -{MAX_WEIGHT:g} to "
            f"{MAX_WEIGHT:g}, for example {reference}:0.5",
            code="invalid_composition",
        )
    return weight
