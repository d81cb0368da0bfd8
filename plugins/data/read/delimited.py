"""Read CSV and its relatives: a header, then one row per record. A row's number is that of the line on which it begins.

Empty cells, and a column without a name (where pandas writes its index), are absent. Messages and tools are JSON inside
a cell.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tunery.plugins.data.read.json_columns import with_json_columns
from tunery.plugins.data.read.record import MAX_ROW, FileBroken, Record

__all__ = ["delimiter_of", "read_delimited"]

_DELIMITERS = (",", ";", "\t", "|")
_SAVED = "save it as CSV in UTF-8, with quotes around texts that hold delimiters, quotes or line ends"


def delimiter_of(header: str) -> str:
    """The delimiter of a header: the candidate that occurs most often."""
    return max(_DELIMITERS, key=header.count)


def read_delimited(path: Path, stream: io.BufferedReader, delimiter: str) -> Iterator[Record]:
    """Yield every record under the header's names. Raises FileBroken at the first with another number of cells."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in rows:
            if header is None:
                header = _header(path, cells)
            elif any(cells):
                yield line, _row(path, line, header, cells)
            line = rows.line_num + 1
    except csv.Error as error:
        raise FileBroken(path, f"is not CSV ({error})", _SAVED, line=line) from error
    except UnicodeDecodeError as error:
        raise FileBroken(path, f"is not UTF-8, here or after it ({error.reason})", _SAVED, line=line) from error


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := {name for name in names if name and names.count(name) > 1}:
        raise FileBroken(path, f"has a header that names {', '.join(sorted(twice)[:5])} twice", "rename one", line=1)
    return names


def _row(path: Path, line: int, header: Sequence[str], cells: Sequence[str]) -> bytes:
    if len(cells) != len(header):
        raise FileBroken(path, f"has {len(cells)} cells where the header has {len(header)}", _SAVED, line=line)
    row = {name: cell for name, cell in zip(header, cells, strict=True) if name and cell}
    return msgspec.json.encode(with_json_columns(row)) + b"\n"
