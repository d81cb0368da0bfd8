"""Refuses JSON of more values than any request needs, before it is parsed: nobody else is answered meanwhile."""

from __future__ import annotations

from tunery.plugins.data.read.json_shape import Limits, exceeds
from tunery.registry.errors import InvalidInput

__all__ = ["LIMITS", "check_shape"]

LIMITS = Limits(members=200_000, texts=500_000, values=2_000_000)
"""Token ids are values, and cheap."""


def check_shape(body: bytes) -> None:
    """Raise InvalidInput (too_many_values) for a body of more values."""
    if exceeds(body, LIMITS):
        raise InvalidInput(
            f"the body has more than {LIMITS.values:,} values, {LIMITS.texts:,} texts, or {LIMITS.members:,} objects, "
            "lists and fields of them; send several smaller requests, or upload a file",
            code="too_many_values",
        )
