"""The rule `schema`: every record is a valid row, and all rows of a file are in one format."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tunery.plugins.data.checks.check import Check, CheckContext, Fault
from tunery.plugins.data.checks.parsed_record import Location, ParsedRecord
from tunery.plugins.data.read import MAX_ROW

__all__ = ["CUT", "Schema", "is_cut"]


CUT = "the file ends here without a line end, so it may have been cut off: copy it again"


def is_cut(record: ParsedRecord) -> bool:
    """Whether a record is not JSON and ends its file without a line end."""
    return record.value is None and not record.raw.endswith(b"\n") and len(record.raw) <= MAX_ROW


class Schema(Check):
    """Reports what parsing found."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._first: dict[tuple[str, bool], tuple[str, int]] = {}

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        if record.invalid is None or record.invalid.rule != "schema":
            return
        for fault in record.invalid.faults:
            fix = CUT if is_cut(record) else fault.fix or "fix the line or drop it"
            yield msgspec.structs.replace(fault, fix=fix)

    def summarize(self, record: ParsedRecord) -> str | None:
        return record.row.format if record.row else None

    def compare(self, location: Location, summary: str) -> Iterable[Fault]:
        name, line = self._first.setdefault((location.file, location.held_out), (summary, location.line))
        if summary != name:
            yield Fault("$", f"is in the format {summary}, line {line} in {name}", "keep one format a file")
