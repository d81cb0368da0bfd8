"""Owns the rule `schema`: every line is a row, and all rows of a file are in one format."""

from __future__ import annotations

from collections.abc import Iterable

from tunery.plugins.data.checks.finding import Check, Context, Fault
from tunery.plugins.data.checks.line import Line, Place
from tunery.plugins.data.read import MAX_ROW

__all__ = ["CUT", "Schema", "is_cut"]


CUT = "the file ends here without a line end, so it may have been cut off: copy it again"


def is_cut(line: Line) -> bool:
    """Whether a line is no JSON and the last of its file, without a line end."""
    return line.value is None and not line.raw.endswith(b"\n") and len(line.raw) <= MAX_ROW


class Schema(Check):
    """Reports what parsing said."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._first: dict[tuple[str, bool], tuple[str, int]] = {}

    def of_line(self, line: Line) -> Iterable[Fault]:
        if line.invalid is None or line.invalid.rule != "schema":
            return
        for path, text in line.invalid.faults:
            message, _, fix = text.rpartition("; ")
            yield Fault(path, message or text, CUT if is_cut(line) else fix if message else "fix the line or drop it")

    def note(self, line: Line) -> str | None:
        return line.row.format if line.row else None

    def gather(self, place: Place, note: str) -> Iterable[Fault]:
        name, line = self._first.setdefault((place.file, place.validation), (note, place.line))
        if note != name:
            yield Fault("$", f"is in the format {note}, line {line} in {name}", "keep one format a file")
