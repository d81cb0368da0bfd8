"""Count the values of JSON before it is parsed.

Parsing holds Python's lock from its beginning to its end, and takes fifty times as long for a megabyte of empty lists
as for one of text. In a process with other things to do, they wait. Counting takes a few milliseconds.
"""

from __future__ import annotations

import msgspec

__all__ = ["Limits", "exceeds"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How many there may be: `members` are objects, lists and fields of objects, `values` all entries of both."""

    members: int
    texts: int
    values: int


def exceeds(data: bytes, limits: Limits) -> bool:
    """Whether JSON has more values than that; what is in texts does not count."""
    if len(data) - len(data.translate(None, b"{[:,")) <= min(limits.members, limits.texts):
        return False
    unescaped = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if unescaped.count(b'"') > 2 * limits.texts:
        return True
    outside = b"".join(unescaped.split(b'"')[::2])
    members = len(outside) - len(outside.translate(None, b"{[:"))
    return members > limits.members or outside.count(b",") > limits.values
