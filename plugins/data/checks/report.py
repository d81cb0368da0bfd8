"""The result of checking files: findings with their place in a file, and figures."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from tunery.plugins.hookspecs import Severity

__all__ = ["KEPT", "WHOLE_FILE", "DataReport", "Finding"]

KEPT = 1000
"""Findings per rule and severity that a report lists; the rest are only counted."""

WHOLE_FILE = 0
"""The line number of a finding about a whole file."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A fault with its rule and its place. `line` counts from 1 (0: the whole file); `path` is a JSON path."""

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
    """Findings in the order of the files, and figures by name (see docs/data.md).

    `findings` lists the first KEPT of each rule and severity; `counts` has the full number, by rule and then severity.
    """

    findings: list[Finding]
    statistics: dict[str, Any]
    counts: dict[str, dict[Severity, int]] = {}

    @property
    def errors(self) -> list[Finding]:
        """The listed findings that keep the files from being trained on."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def count(self, severity: Severity, *, without: Collection[str] = ()) -> int:
        """Number of findings of a severity, leaving out the rules in `without`."""
        return sum(by_severity.get(severity, 0) for rule, by_severity in self.counts.items() if rule not in without)
