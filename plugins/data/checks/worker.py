"""Run every check on single records. One worker lives in each process of the pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.data.checks.check import Check, CheckContext, Fault
from tunery.plugins.data.checks.parsed_record import Location, ParsedRecord
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.descriptors import load_entrypoint
from tunery.plugins.hookspecs import CheckInfo, FormatInfo

__all__ = ["Chunk", "CheckSetup", "RecordResult", "Worker", "failed_check", "load_checks"]

Chunk = list[tuple[Location, bytes]]
"""Records with their locations, sent to a worker together."""


class CheckSetup(msgspec.Struct, frozen=True):
    """What a process needs to check records: formats in the order in which they are tried, and checks as registered."""

    formats: tuple[FormatInfo, ...]
    checks: tuple[CheckInfo, ...]
    base_folder: Path | None
    context: CheckContext


class RecordResult(msgspec.Struct, frozen=True):
    """The outcome for one record: (rule, fault) and (rule, summary) pairs, and its format where it is a valid row.

    `is_blank` is true for a line without a record.
    """

    location: Location
    format: str | None
    faults: list[tuple[str, Fault]]
    summaries: list[tuple[str, Any]]
    is_blank: bool = False


class Worker:
    """Applies the per-record half of every check."""

    def __init__(self, setup: CheckSetup) -> None:
        self._formats = setup.formats
        self._checks = load_checks(setup)
        self._renderer = Renderer(setup.base_folder) if setup.base_folder else None

    def check_chunk(self, chunk: Chunk) -> list[RecordResult]:
        """The result for each record, in order."""
        return [self._check(location, raw) for location, raw in chunk]

    def _check(self, location: Location, raw: bytes) -> RecordResult:
        record = ParsedRecord(location, raw, formats=self._formats, renderer=self._renderer)
        faults: list[tuple[str, Fault]] = []
        summaries: list[tuple[str, Any]] = []
        for rule, check in self._checks.items():
            try:
                faults += [(rule, fault) for fault in check.check_record(record)]
                if (summary := check.summarize(record)) is not None:
                    summaries.append((rule, summary))
            except Exception as error:  # a third party's check may raise anything
                faults.append((rule, failed_check(error)))
        is_blank = record.row is None and record.invalid is None
        return RecordResult(location, record.row.format if record.row else None, faults, summaries, is_blank)


def load_checks(setup: CheckSetup) -> dict[str, Check]:
    """A new instance of every registered check, by rule."""
    return {info.name: load_entrypoint(info.entrypoint)(setup.context) for info in setup.checks}


def failed_check(error: Exception) -> Fault:
    """The fault that stands for a check that raised."""
    return Fault("$", f"could not be checked: {type(error).__name__}: {error}", "fix or remove the check", "error")
