"""Read JSON Lines: a row a line, its number the line's."""

from __future__ import annotations

import io
from collections.abc import Iterator

from tunery.plugins.data.read.record import MAX_ROW, Record

__all__ = ["read_lines"]


def read_lines(stream: io.BufferedReader) -> Iterator[Record]:
    """Every line, blank ones too, line ending included; of one that is too long only the beginning."""
    number = 0
    while line := stream.readline(MAX_ROW + 1):
        number += 1
        yield number, line
        while len(line) > MAX_ROW and not line.endswith(b"\n"):
            line = stream.readline(MAX_ROW + 1)
