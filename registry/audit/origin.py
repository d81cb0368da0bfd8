"""Who acts: a request's key, its id and where it came from; without a request, the user of this machine.

The gateway sets the origin of each request, and whatever that request calls, in threads too, is recorded under it.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec

__all__ = ["SYSTEM", "Origin", "acting", "begin", "current_origin", "local_actor"]

SYSTEM = "tunery"
"""The actor of what nobody asked for at that moment, such as the end of an expired file."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """`actor` is `key:ID` or `user:NAME`; `source` is the address that the request came from, if there was one."""

    actor: str
    request_id: str = ""
    source: str = ""


_current: ContextVar[Origin | None] = ContextVar("tunery_origin", default=None)


def current_origin() -> Origin:
    """The origin of the request that is being answered, else this machine's user."""
    return _current.get() or Origin(actor=local_actor())


def begin(origin: Origin) -> None:
    """Record what follows in this task, and in what it starts, under `origin`."""
    _current.set(origin)


@contextmanager
def acting(origin: Origin) -> Iterator[None]:
    """Record what the block does under `origin`."""
    token = _current.set(origin)
    try:
        yield
    finally:
        _current.reset(token)


def local_actor() -> str:
    """`user:` and what `TUNERY_ACTOR` says, else the user's name, else `unknown`."""
    try:
        name = os.environ.get("TUNERY_ACTOR") or getpass.getuser()
        return f"user:{os.fsencode(name).decode('utf-8', 'replace')}"
    except (OSError, KeyError):
        return "user:unknown"
