"""Owns how adapters, aliases and versions are written; refuses anything that could be a path.

A reference is what a caller writes: `acme/support` (its `production` alias, or the newest version while
it has none), `acme/support@3` or `acme/support@canary`.
"""

from __future__ import annotations

import re

import msgspec

from tunery.registry.errors import InvalidInput

__all__ = ["PRODUCTION", "Reference", "check_adapter", "check_alias", "parse_reference", "tenant_of"]

PRODUCTION = "production"

_WORD = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
_ADAPTER = re.compile(rf"{_WORD}/{_WORD}")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class Reference(msgspec.Struct, frozen=True):
    """A parsed reference: at most one of `number` and `alias` is set."""

    adapter: str
    number: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        pin = self.number if self.number is not None else self.alias
        return self.adapter if pin is None else f"{self.adapter}@{pin}"


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
        if int(pin) < 1:
            raise InvalidInput(f"{text!r}: versions count from 1", code="invalid_name")
        return Reference(adapter, number=int(pin))
    return Reference(adapter, alias=check_alias(pin))
