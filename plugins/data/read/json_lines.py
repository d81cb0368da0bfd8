"""Read JSON Lines: one row per line, numbered by line."""

from __future__ import annotations

import io
from collections.abc import Iterator

from tunery.plugins.data.read.record import MAX_ROW, Record

__all__ = ["read_lines"]


def read_lines(stream: io.BufferedReader) -> Iterator[Record]:
    """Yield every line with its line end, blank ones too; of a line that is too long only the beginning."""
    number = 0
    while line := stream.readline(MAX_ROW + 1):
        number += 1
        yield number, line
        while len(line) > MAX_ROW and not line.endswith(b"\n"):
            line = stream.readline(MAX_ROW + 1)
