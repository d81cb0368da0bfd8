"""What a check found, and what all checks are given."""

from __future__ import annotations

from typing import Literal

import msgspec

from tunery.registry.configuration.settings import Settings
from tunery.registry.home import Home

__all__ = ["Examined", "Finding", "State", "fail", "ok", "warn"]

State = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    """One line of the report: what was looked at, how it is, what was found, and what to do about it."""

    check: str
    state: State
    found: str
    advice: str = ""


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """What is examined. `now` is Unix time in s; `deep` reads every byte and imports torch; `server` is a URL."""

    home: Home
    settings: Settings
    now: float
    deep: bool = False
    server: str | None = None


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, advice: str) -> Finding:
    """It works, and will not always."""
    return Finding(check, "warn", found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, "fail", found, advice)
