"""Ids that nobody can guess, for each of hundreds of requests a second: random bytes are fetched for many at once."""

from __future__ import annotations

import os
from collections import deque

__all__ = ["unique_id"]

_BYTES, _AHEAD = 16, 256

_pool: deque[str] = deque()
# A forked process must not give out the same ids as its parent.
os.register_at_fork(after_in_child=_pool.clear)


def unique_id() -> str:
    """32 hexadecimal digits; may be called by several threads."""
    try:
        return _pool.pop()
    except IndexError:
        digits = os.urandom(_BYTES * _AHEAD).hex()
        ids = [digits[at : at + 2 * _BYTES] for at in range(0, len(digits), 2 * _BYTES)]
        _pool.extend(ids[1:])
        return ids[0]
