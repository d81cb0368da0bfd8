"""Turn the results of single records into a report: compare records, locate findings, count and cap them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunery.plugins.data.checks.check import Fault
from tunery.plugins.data.checks.report import KEPT, WHOLE_FILE, DataReport, Finding
from tunery.plugins.data.checks.worker import CheckSetup, RecordResult, failed_check, load_checks
from tunery.plugins.data.read import FileBroken
from tunery.plugins.hookspecs import Severity

__all__ = ["FileKey", "ReportBuilder"]

FileKey = tuple[str, bool]
"""A file's label, and whether its rows are held out."""


class ReportBuilder:
    """Applies the half of every check that sees records in order. Feed it results in the order of the files."""

    def __init__(self, setup: CheckSetup) -> None:
        self._severities = {info.name: info.severity for info in setup.checks}
        self._checks = load_checks(setup)
        self._findings: list[Finding] = []
        self._counts: dict[str, dict[Severity, int]] = {}
        self._row_counts: dict[FileKey, tuple[int, str]] = {}
        self._with_records: set[FileKey] = set()

    def add(self, result: RecordResult) -> None:
        """Add the result of the next record."""
        location = result.location
        for rule, fault in result.faults:
            self._add_finding(location.file, location.line, rule, fault)
        for rule, summary in result.summaries:
            for fault in _guarded(self._checks[rule].compare, location, summary):
                self._add_finding(location.file, location.line, rule, fault)
        key = location.file, location.held_out
        if not result.is_blank:
            self._with_records.add(key)
        if result.format:
            count, first_format = self._row_counts.get(key, (0, result.format))
            self._row_counts[key] = (count + 1, first_format)

    def build(self, files: Sequence[FileKey], broken: Mapping[FileKey, FileBroken]) -> DataReport:
        """The report, with findings about whole files; `broken` are the files that could not be read to their end."""
        statistics: dict[str, Any] = {"files": []}
        for label, held_out in files:
            rows, name = self._row_counts.get((label, held_out), (0, None))
            statistics["files"].append({"file": label, "rows": rows, "format": name, "held_out": held_out})
            if error := broken.get((label, held_out)):
                fault = Fault("$", error.problem, error.fix, "error")
                self._add_finding(label, error.line or WHOLE_FILE, "schema", fault, is_kept=True)
            elif (label, held_out) not in self._with_records:
                fault = Fault("$", "has no rows", "write one JSON object a line", "error")
                self._add_finding(label, WHOLE_FILE, "schema", fault)
        labels = ", ".join(label for label, _ in files)
        for rule, check in self._checks.items():
            statistics |= check.statistics()
            for fault in _guarded(check.check_dataset):
                self._add_finding(labels, WHOLE_FILE, rule, fault)
        return DataReport(self._findings, statistics, self._counts)

    def _add_finding(self, file: str, line: int, rule: str, fault: Fault, *, is_kept: bool = False) -> None:
        severity = fault.severity or self._severities.get(rule, "error")
        counts = self._counts.setdefault(rule, {})
        counts[severity] = counts.get(severity, 0) + 1
        if counts[severity] > KEPT and line != WHOLE_FILE and not is_kept:
            return
        self._findings.append(
            Finding(
                file=file,
                line=line,
                path=fault.path,
                rule=rule,
                severity=severity,
                message=fault.message,
                fix=fault.fix,
            )
        )


def _guarded(call: Any, *arguments: Any) -> list[Fault]:
    try:
        return list(call(*arguments))
    except Exception as error:  # a third party's check may raise anything
        return [failed_check(error)]
