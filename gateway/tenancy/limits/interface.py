"""Where what is admitted is counted: in this process, or together with other gateways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

__all__ = ["Counters", "Resource", "Shortage", "Standing", "Taken", "Want"]

Resource = Literal["requests", "tokens", "concurrent"]
"""Requests and tokens count for a minute, concurrent requests until they are given back."""


class Want(msgspec.Struct, frozen=True):
    """So much of a resource for a subject, `tenant:acme` or `key:ID`, under a limit."""

    subject: str
    resource: Resource
    amount: int
    limit: int


class Taken(msgspec.Struct, frozen=True):
    """What was counted, and where: in which slot, and whether for this process `alone` while the others could not be
    asked."""

    want: Want
    slot: int = 0
    alone: bool = False


class Shortage(msgspec.Struct, frozen=True):
    """What there is not enough of, for so many seconds; None where there never will be."""

    want: Want
    seconds: float | None


class Standing(msgspec.Struct, frozen=True):
    """How much of a limit is left, and in how many seconds all of it is."""

    remaining: int
    reset_seconds: float


class Counters(Protocol):
    """The counters. `start` and `stop` belong to the gateway's event loop, as do all calls."""

    async def start(self) -> None:
        """Begin to count."""

    async def stop(self) -> None:
        """Give back what is counted for requests that no longer run."""

    def shortage(self, wants: Sequence[Want]) -> Shortage | None:
        """The first want that is known to be refused now."""

    async def take(self, wants: Sequence[Want]) -> list[Taken] | Shortage:
        """Count all wants, or none."""

    def give_back(self, taken: Taken, amount: int) -> None:
        """Count so much of what was taken no longer."""

    def standing(self, subject: str, resource: Resource, limit: int) -> Standing:
        """How a limit of requests or tokens stands, as far as this process knows."""
