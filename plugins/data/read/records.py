"""Recognise the kind of a data file, and read its rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from tunery.plugins.data.read.delimited import delimiter_of, read_delimited
from tunery.plugins.data.read.files import data_files
from tunery.plugins.data.read.json_documents import read_documents
from tunery.plugins.data.read.json_lines import read_lines
from tunery.plugins.data.read.record import FileBroken, Record
from tunery.plugins.data.read.tables import read_arrow, read_parquet
from tunery.plugins.data.read.text_stream import HEAD, open_text
from tunery.registry.errors import InvalidData

__all__ = ["iter_records"]

_KINDS = "rows are read from JSON Lines, JSON, CSV, Parquet and Arrow, the texts among them gzipped or not"
_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", "unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", "save the sheet as CSV"),
    (b"%PDF", "a PDF", "export its rows"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it with zstd -d"),
    (b"BZh", "packed with bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ", "packed with xz", "unpack it with unxz"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"\x89HDF", "an HDF5 file", "export the table as Parquet"),
)
_COLUMNS = frozenset(
    ("prompt", "completion", "instruction", "output", "chosen", "rejected", "messages", "conversations")
)
_LOOKED_AT = 20
"""Lines after which a text without any JSON object is not a file of rows."""


def iter_records(path: Path) -> Iterator[Record]:
    """Yield every row of a file or folder, with its number from 1.

    Raises NotFound where there is no file, InvalidData for one that cannot be read, FileBroken where no more of it can
    be read, and Unavailable where a package is missing.
    """
    path = Path(path)
    files = data_files(path)
    number = 0
    try:
        for file in files:
            before = number
            for number, raw in _read_file(file):
                number += before
                yield number, raw
    except FileBroken:
        raise
    except OSError as error:
        raise InvalidData(f"{path.name} cannot be read ({error.strerror})") from error


def _read_file(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"PAR1"):
        return read_parquet(path)
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return read_arrow(path)
    _refuse_foreign(path, start)
    return _read_text(path)


def _read_text(path: Path) -> Iterator[Record]:
    head, stream = open_text(path)
    with stream:
        _refuse_foreign(path, head)
        if b"\0" in head[:_LOOKED_AT] and max(map(head[:HEAD].count, (b'\0"', b'"\0'))) > 1:
            raise FileBroken(path, "looks like UTF-16 without a byte order mark", "save it as UTF-8")
        if head.startswith((b"PAR1", b"ARROW1")):
            raise FileBroken(
                path, "is a table inside gzip", "unpack it with gunzip: Parquet packs what it holds itself"
            )
        if _is_documents(head):
            yield from read_documents(path, stream)
        elif delimiter := _delimiter(path, head):
            yield from read_delimited(path, stream, delimiter)
        elif _is_no_rows(head):
            raise FileBroken(path, "has no rows: its lines are not JSON objects", _KINDS)
        else:
            yield from read_lines(stream)


def _refuse_foreign(path: Path, start: bytes) -> None:
    for magic, what, fix in _FOREIGN:
        if start.startswith(magic):
            raise FileBroken(path, f"is {what} ({_KINDS})", fix)


def _is_documents(head: bytes) -> bool:
    """Whether a text is an array of objects, or objects over several lines, rather than one object per line."""
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    first, _, others = text.partition("\n")
    if text[:1] not in ("[", "{") or (_is_json(first) and (text[0] == "{" or others.strip())):
        return False
    if text[0] == "[":
        return not others.strip() or not _is_json(others.split("\n", 1)[0]) or first.strip() == "["
    try:
        _, end = json.JSONDecoder(parse_int=str).raw_decode(text)
    except (ValueError, RecursionError):
        # The first object may be longer than the head; a second line that is an object itself speaks against that.
        return len(head) >= HEAD and "\n" in text and not others.lstrip().startswith("{")
    return "\n" in text[:end] or text[end:].lstrip(" \t").startswith("{")


def _is_json(line: str) -> bool:
    try:
        json.loads(line, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True


def _delimiter(path: Path, head: bytes) -> str | None:
    """The delimiter of a file named .csv or .tsv, or whose first line names columns of a format; None for any other."""
    first = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    if not first or first[0] in "{[":
        return None
    delimiter = delimiter_of(first)
    names = {name.lower() for name in path.name.split(".")[1:]}
    has_csv_name = bool(names & {"csv", "tsv"})
    try:
        cells = {cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])}
    except csv.Error:
        return None
    return delimiter if has_csv_name or len(cells & _COLUMNS) > 1 else None


def _is_no_rows(head: bytes) -> bool:
    lines = [line for line in head.split(b"\n") if line.strip()][:_LOOKED_AT]
    return len(lines) > 2 and not any(line.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") for line in lines)
