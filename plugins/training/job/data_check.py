"""Owns checking a job's rows before anything is trained. Refuses rows that a rule calls an error, unless the rule was allowed, and
allowing a rule without which a row is none."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tunery.plugins.data.checks.report import Finding
from tunery.plugins.data.checks.runner import check_data
from tunery.plugins.manager import Plugins
from tunery.registry import Base
from tunery.registry.errors import InvalidData, InvalidInput, UnknownName

__all__ = ["UNREADABLE", "DataCheck", "check_allowed", "check_before_split", "check_rows"]

UNREADABLE = ("schema", "encoding", "template", "no_trainable_token")
"""Rules whose errors leave nothing to train on."""

_SHOWN, _KEPT = 20, 3


class DataCheck(msgspec.Struct, frozen=True):
    """What the check found, for the manifest: how much by rule, and the first findings of each rule that did not stop the run."""

    allowed: list[str]
    findings: dict[str, int]
    warnings: list[Finding]


def check_rows(
    data: Sequence[Path],
    validation: Path | None,
    *,
    base: Base,
    max_length: int,
    allow: Sequence[str],
    plugins: Plugins,
) -> DataCheck:
    """Put every row through every check; raise InvalidData, with the first failing rule as its code, where a rule that is not in
    `allow` finds an error."""
    check_allowed(allow, plugins)
    report = check_data(data, validation, plugins=plugins, base_folder=Path(base.path), max_length=max_length)
    errors = [finding for finding in report.errors if finding.rule not in allow]
    if errors:
        words = [*map(str, data), *(["--val", str(validation)] if validation else [])]
        command = shlex.join(["tunery", "data", "check", *words, "--base", base.name, "--max-length", str(max_length)])
        raise _refusal(errors, report.count("error", without=allow), command, "nothing was trained")
    told = [finding for finding in report.findings if finding.severity != "info"]
    return DataCheck(
        allowed=sorted(set(allow)),
        findings={
            rule: number
            for rule, found in report.counts.items()
            if (number := found.get("error", 0) + found.get("warning", 0))
        },
        warnings=_first_of_each(told),
    )


def check_before_split(path: Path, *, allow: Sequence[str], plugins: Plugins, format: str | None) -> None:  # noqa: A002
    """Put the rows of a file through every check that needs no base; raise InvalidData as a run would."""
    check_allowed(allow, plugins)
    report = check_data([path], None, plugins=plugins, base_folder=None, max_length=1, format=format)
    if errors := [finding for finding in report.errors if finding.rule not in allow]:
        command = shlex.join(["tunery", "data", "check", str(path)])
        raise _refusal(errors, report.count("error", without=allow), command, "nothing was written")


def check_allowed(names: Sequence[str], plugins: Plugins) -> None:
    """Raise UnknownName for a rule that is none, InvalidInput for one that no run can do without."""
    for name in names:
        if name not in plugins.checks():
            raise UnknownName("rule", name, plugins.checks(), param="allow")
        if name in UNREADABLE:
            raise InvalidInput(
                f"the rule {name!r} cannot be allowed: what it finds cannot be trained on; mend or drop the rows",
                param="allow",
            )


def _refusal(errors: Sequence[Finding], count: int, command: str, outcome: str) -> InvalidData:
    """The error for a person: the first findings, the command that shows the others, and how to insist."""
    rule = errors[0].rule
    lines = [str(finding) for finding in errors[:_SHOWN]]
    if count > _SHOWN:
        lines.append(f"and {count - _SHOWN} more; {command} shows more")
    passable = [name for name in dict.fromkeys(finding.rule for finding in errors) if name not in UNREADABLE]
    if passable:
        lines.append(f"mend the rows; where they are meant so: {' '.join(f'--allow {name}' for name in passable)}")
    head = f"{count} error{'s' * (count > 1)} in the data; {outcome}"
    return InvalidData(head, problems=lines, code=rule)


def _first_of_each(findings: Sequence[Finding]) -> list[Finding]:
    seen: Counter[str] = Counter()
    kept = []
    for finding in findings:
        seen[finding.rule] += 1
        if seen[finding.rule] <= _KEPT:
            kept.append(finding)
    return kept
