"""The rule `extra_column`: columns of a row that its format does not read, and that nobody trains on therefore."""

from __future__ import annotations

from collections.abc import Iterable

from tunery.plugins.data.checks.finding import Check, Context, Fault
from tunery.plugins.data.checks.line import Line, Place

__all__ = ["ExtraColumn"]

_EXPECTED = frozenset(
    ("metadata", "id", "_id", "uuid", "idx", "index", "source", "split", "store", "model", "__index_level_0__")
)
"""What says where a row is from, so that nobody expects it to be trained on."""
_COLUMNS = 20


class ExtraColumn(Check):
    """Names each such column once a file, at the first row that has it."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._seen: dict[tuple[str, bool], set[str]] = {}

    def note(self, line: Line) -> list[str] | None:
        return [name[:60] for name in line.extra_columns if name not in _EXPECTED][:_COLUMNS] or None

    def gather(self, place: Place, note: list[str]) -> Iterable[Fault]:
        seen = self._seen.setdefault((place.file, place.validation), set())
        for name in note:
            if name not in seen and len(seen) < _COLUMNS:
                seen.add(name)
                yield Fault(
                    f"$.{name}", "is no key of the format, so it is not trained on", "drop it, or move it into metadata"
                )
