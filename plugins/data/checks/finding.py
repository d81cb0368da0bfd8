"""Owns what a check of training data is, and what it finds.

A check sees every line twice. `of_line` runs where lines are parsed, in any of several processes and in any order; it reports
what can be known from the line alone, and `note` boils the line down to a small value. `gather` runs in one process, in the order of
the file, on those values: what takes more than one line to see is seen there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from tunery.plugins.data.checks.line import Line, Place
from tunery.plugins.hookspecs import Severity

__all__ = ["Check", "Context", "DataReport", "Fault", "Finding", "KEPT", "NOWHERE"]

KEPT = 1000
"""Findings of one rule and severity that a report describes; the others it counts."""

NOWHERE = 0
"""The line of a finding about a whole file."""


class Fault(msgspec.Struct, frozen=True):
    """What a check says of one line; `severity` where it is not the check's own."""

    path: str
    message: str
    fix: str
    severity: Severity | None = None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A fault with its place and rule. `line` counts from 1 (0: the whole file), `path` is a JSON path."""

    file: str
    line: int
    path: str
    rule: str
    severity: Severity
    message: str
    fix: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        fix = f"; {self.fix}" if self.fix else ""
        return f"{place}: {self.path}: {self.message}{fix} [{self.rule}]"


class DataReport(msgspec.Struct, frozen=True):
    """What was found, in the order of the files, and figures by name (see docs/data.md).

    `findings` has the first KEPT of each rule and severity; `counts` has how many there are, by rule and then severity.
    """

    findings: list[Finding]
    statistics: dict[str, Any]
    counts: dict[str, dict[Severity, int]] = {}

    @property
    def errors(self) -> list[Finding]:
        """What keeps the files from being trained on, the first of each rule."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def count(self, severity: Severity, *, without: Collection[str] = ()) -> int:
        """How many findings there are of a severity, but for those of some rules."""
        return sum(found.get(severity, 0) for rule, found in self.counts.items() if rule not in without)


class Context(msgspec.Struct, frozen=True):
    """What a check is made for: `max_length` in tokens, whether there is a base to render with, and a held-out file."""

    max_length: int
    has_base: bool
    has_validation: bool


class Check:
    """A check that finds nothing; override what yours needs."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def of_line(self, line: Line) -> Iterable[Fault]:
        """What is wrong with one line by itself."""
        return ()

    def note(self, line: Line) -> Any:
        """A small value, which pickle takes, for `gather`; None to not be called."""
        return None

    def gather(self, place: Place, note: Any) -> Iterable[Fault]:
        """What is wrong with a line, given all the lines before it."""
        return ()

    def statistics(self) -> dict[str, Any]:
        """Figures of all files, by name; called once, after the last line."""
        return {}

    def of_whole(self) -> Iterable[Fault]:
        """What is wrong with the files as a whole; called once, after the last line."""
        return ()
