"""The rule `extra_column`: columns that the row's format does not read, so that nothing of them is trained on."""

from __future__ import annotations

from collections.abc import Iterable

from tunery.plugins.data.checks.check import Check, CheckContext, Fault
from tunery.plugins.data.checks.parsed_record import Location, ParsedRecord

__all__ = ["ExtraColumn"]

_EXPECTED = frozenset(
    ("metadata", "id", "_id", "uuid", "idx", "index", "source", "split", "store", "model", "__index_level_0__")
)
"""Columns that say where a row is from; nobody expects those to be trained on."""
_COLUMNS = 20


class ExtraColumn(Check):
    """Reports each such column once per file, at the first row that has it."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._seen: dict[tuple[str, bool], set[str]] = {}

    def summarize(self, record: ParsedRecord) -> list[str] | None:
        return [name[:60] for name in record.extra_columns if name not in _EXPECTED][:_COLUMNS] or None

    def compare(self, location: Location, summary: list[str]) -> Iterable[Fault]:
        seen = self._seen.setdefault((location.file, location.held_out), set())
        for name in summary:
            if name not in seen and len(seen) < _COLUMNS:
                seen.add(name)
                yield Fault(
                    f"$.{name}",
                    "is not a key of the format, so it is not trained on",
                    "drop it, or move it into metadata",
                )
