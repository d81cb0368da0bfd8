"""Read a whole file of rows for training. A file with any bad row is refused, with what is wrong in all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tunery.plugins.data.read.formats import InvalidRow
from tunery.plugins.data.read.records import iter_records
from tunery.plugins.data.read.row import Row, parse_row
from tunery.plugins.hookspecs import FormatInfo
from tunery.registry.errors import InvalidData, InvalidInput

__all__ = ["read_rows"]

_MAX_PROBLEMS = 100
"""Problems after which a file is read no further."""


def read_rows(path: Path, *, formats: Iterable[FormatInfo] | Mapping[str, FormatInfo]) -> list[Row]:
    """Read every row of a file. Blank lines are skipped; all rows must be in one format.

    Raises InvalidData that names every bad line with its JSON path and what to do.
    """
    path = Path(path)
    choices = list(formats.values()) if isinstance(formats, Mapping) else list(formats)
    rows: list[Row] = []
    problems: list[str] = []
    bad_lines: set[int] = set()
    for number, raw in iter_records(path):
        before = len(problems)
        row = _parse(path, number, raw, choices, problems)
        if row and rows and row.format != rows[0].format:
            problems.append(
                f"{path.name}:{number}: $: is in the format {row.format}, line {rows[0].line} in {rows[0].format}; "
                "keep one format a file"
            )
        elif row:
            rows.append(row)
        if len(problems) > before:
            bad_lines.add(number)
        if len(problems) > _MAX_PROBLEMS:
            raise InvalidData(
                f"{path}: more than {_MAX_PROBLEMS} problems in its first {number} rows; nothing was trained",
                problems=problems,
            )
    if problems:
        count = len(bad_lines)
        raise InvalidData(f"{path}: {count} bad line{'s' * (count > 1)}; nothing was trained", problems=problems)
    if not rows:
        raise InvalidData(f"{path} has no rows; write one JSON object a line")
    return rows


def _parse(path: Path, number: int, raw: bytes, formats: Sequence[FormatInfo], problems: list[str]) -> Row | None:
    """The row in a record; None where it is blank or invalid, which adds to `problems`."""
    try:
        return parse_row(number, raw, formats)
    except InvalidRow as error:
        problems += error.problems(f"{path.name}:{number}")
    except InvalidInput as error:
        problems.append(f"{path.name}:{number}: {error.message}")
    return None
