"""Refuses JSON of more values than any request needs, before it is parsed.

Parsing holds Python's lock from its beginning to its end: a few megabytes of empty lists take longer than seconds of
text, and nobody else is answered meanwhile. Counting takes milliseconds.
"""

from __future__ import annotations

from tunery.registry.errors import InvalidInput

__all__ = ["MAX_MEMBERS", "MAX_TEXTS", "MAX_VALUES", "check_shape"]

MAX_MEMBERS, MAX_TEXTS, MAX_VALUES = 200_000, 500_000, 2_000_000
"""Objects, lists and fields of objects; texts; and all entries of lists and objects, such as token ids."""
_FEW = 100_000
"""Marks that may be there without a closer look, texts included."""


def check_shape(body: bytes) -> None:
    """Raise InvalidInput (too_many_values) for a body of more members, texts or values than that."""
    if len(body) - len(body.translate(None, b"{[:,")) <= _FEW:
        return
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if unescaped.count(b'"') <= 2 * MAX_TEXTS:
        outside = b"".join(unescaped.split(b'"')[::2])
        members = len(outside) - len(outside.translate(None, b"{[:"))
        if members <= MAX_MEMBERS and outside.count(b",") <= MAX_VALUES:
            return
    raise InvalidInput(
        f"the body has more than {MAX_VALUES:,} values, {MAX_TEXTS:,} texts, or {MAX_MEMBERS:,} objects, lists and "
        "fields of them; send several smaller requests, or upload a file",
        code="too_many_values",
    )
