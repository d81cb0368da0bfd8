"""What a check of training data is: the base class, what it is constructed with, and the faults it yields.

A check runs in two steps, so that files can be checked by several processes:

- `check_record` and `summarize` see one record at a time, in any process and in any order. `check_record` reports what
  can be seen in the record alone; `summarize` reduces the record to a small value.
- `compare` runs in a single process, in the order of the file, and sees only those values. It reports what takes more
  than one record to see, such as duplicates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from tunery.plugins.data.checks.parsed_record import Location, ParsedRecord
from tunery.plugins.data.read.formats import Fault

__all__ = ["Check", "CheckContext", "Fault"]


class CheckContext(msgspec.Struct, frozen=True):
    """What a check may know before it sees a record.

    `max_length` is in tokens; `has_base` says whether records are rendered; `has_held_out` whether there is a held-out
    file.
    """

    max_length: int
    has_base: bool
    has_held_out: bool


class Check:
    """A check that reports nothing. Subclass it and override the methods you need."""

    def __init__(self, context: CheckContext) -> None:
        self.context = context

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        """Report what is wrong with one record by itself."""
        return ()

    def summarize(self, record: ParsedRecord) -> Any:
        """Reduce a record to a small, picklable value for `compare`; None skips `compare` for this record."""
        return None

    def compare(self, location: Location, summary: Any) -> Iterable[Fault]:
        """Report what is wrong with a record, given the summaries of all records before it."""
        return ()

    def statistics(self) -> dict[str, Any]:
        """Figures over all files, by name. Called once, after the last record."""
        return {}

    def check_dataset(self) -> Iterable[Fault]:
        """Report what is wrong with the files as a whole. Called once, after the last record."""
        return ()
