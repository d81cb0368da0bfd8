"""Whether a lease has lapsed, by a clock that may have jumped back since it was given."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, or_

__all__ = ["lapsed"]

FAR = 3
"""A lease that ends later than so many of its lengths from now was given before the clock went back. Whoever holds it
would have renewed it by the new time; one whose holder is dead must not last until the clock is there again. Less than
that may be the difference between two machines' clocks."""


def lapsed(ends: ColumnElement[Any], *, at: float, lease: float) -> ColumnElement[bool]:
    """Whether a lease of `lease` seconds that ends at `ends` is over; False where there is none."""
    return or_(ends < at, ends > at + FAR * max(lease, 1.0))
