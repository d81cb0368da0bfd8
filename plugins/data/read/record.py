"""What readers of files yield: numbered rows as bytes."""

from __future__ import annotations

from tunery.registry.errors import InvalidData

__all__ = ["MAX_ROW", "FileBroken", "Record"]

MAX_ROW = 4 * 2**20
"""Bytes of the longest row accepted, about a million tokens; a longer one is not an example but a broken file."""

Record = tuple[int, bytes]
"""A row's number in its file, from 1, and the bytes of its JSON object with a line end."""


class FileBroken(InvalidData):
    """A file of which no more rows can be read, whatever was read before."""
