"""What readers of files yield: numbered rows as bytes."""

from __future__ import annotations

from pathlib import Path

from tunery.registry.errors import InvalidData

__all__ = ["MAX_ROW", "FileBroken", "Record"]

MAX_ROW = 4 * 2**20
"""Bytes of the longest row accepted, about a million tokens; a longer one is not an example but a broken file."""

Record = tuple[int, bytes]
"""A row's number in its file, from 1, and the bytes of its JSON object with a line end."""


class FileBroken(InvalidData):
    """A file of which no more rows can be read, whatever was read before.

    The message names the file without its folder, as messages about rows do. `line` is None where it is not known.
    """

    def __init__(self, path: Path, problem: str, fix: str, *, line: int | None = None) -> None:
        self.problem, self.fix, self.line = problem, fix, line
        super().__init__(self.under(path.name))

    def under(self, name: str) -> str:
        """The message, for a file that is called `name` elsewhere."""
        place = f"{name}, line {self.line}:" if self.line else name
        return f"{place} {self.problem}; {self.fix}"
