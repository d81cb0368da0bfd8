"""Check the rows of a training job before anything is trained, and refuse those with errors that are not allowed."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tunery.plugins.data.checks.report import Finding
from tunery.plugins.data.checks.runner import CheckOptions, check_data
from tunery.plugins.manager import Plugins
from tunery.registry import Base
from tunery.registry.errors import InvalidData, InvalidInput, UnknownName

__all__ = ["UNREADABLE", "DataCheck", "check_allowed", "check_before_split", "check_rows"]

UNREADABLE = ("schema", "encoding", "template", "no_trainable_token")
"""Rules that cannot be allowed, because a row that breaks them cannot be trained on."""

_SHOWN, _KEPT = 20, 3


class DataCheck(msgspec.Struct, frozen=True):
    """What the check found, for the manifest: the number of findings by rule, and the first ones of each rule."""

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
    """Run every check on every row; raise InvalidData, with the first failing rule as its code, for
    errors of rules outside `allow`."""
    check_allowed(allow, plugins)
    options = CheckOptions(max_length=max_length, base_folder=Path(base.path))
    report = check_data(data, options, plugins=plugins, validation=validation)
    errors = [finding for finding in report.errors if finding.rule not in allow]
    if errors:
        words = [*map(str, data), *(["--val", str(validation)] if validation else [])]
        command = shlex.join(["tunery", "data", "check", *words, "--base", base.name, "--max-length", str(max_length)])
        raise _refusal(errors, report.count("error", without=allow), command, "nothing was trained")
    reported = [finding for finding in report.findings if finding.severity != "info"]
    return DataCheck(
        allowed=sorted(set(allow)),
        findings={
            rule: number
            for rule, by_severity in report.counts.items()
            if (number := by_severity.get("error", 0) + by_severity.get("warning", 0))
        },
        warnings=_first_of_each(reported),
    )


def check_before_split(path: Path, *, allow: Sequence[str], plugins: Plugins, format: str | None) -> None:  # noqa: A002
    """Run the checks that need no base on the rows of a file; raise InvalidData as training would."""
    check_allowed(allow, plugins)
    report = check_data([path], CheckOptions(max_length=1, format=format), plugins=plugins)
    if errors := [finding for finding in report.errors if finding.rule not in allow]:
        command = shlex.join(["tunery", "data", "check", str(path)])
        raise _refusal(errors, report.count("error", without=allow), command, "nothing was written")


def check_allowed(names: Sequence[str], plugins: Plugins) -> None:
    """Raise UnknownName for an unknown rule, InvalidInput for one of UNREADABLE."""
    for name in names:
        if name not in plugins.checks():
            raise UnknownName("rule", name, plugins.checks(), param="allow")
        if name in UNREADABLE:
            raise InvalidInput(
                f"the rule {name!r} cannot be allowed: what it finds cannot be trained on; fix or drop the rows",
                param="allow",
            )


def _refusal(errors: Sequence[Finding], count: int, command: str, outcome: str) -> InvalidData:
    """An error with the first findings, the command that shows the others, and the option that allows them."""
    rule = errors[0].rule
    lines = [str(finding) for finding in errors[:_SHOWN]]
    advice = []
    if count > _SHOWN:
        advice.append(f"and {count - _SHOWN} more; {command} shows more")
    passable = [name for name in dict.fromkeys(finding.rule for finding in errors) if name not in UNREADABLE]
    if passable:
        advice.append(f"fix the rows, or train on them as they are: {' '.join(f'--allow {name}' for name in passable)}")
    head = f"{count} error{'s' * (count > 1)} in the data; {outcome}"
    return InvalidData(head, problems=lines, advice=advice, code=rule)


def _first_of_each(findings: Sequence[Finding]) -> list[Finding]:
    seen: Counter[str] = Counter()
    kept = []
    for finding in findings:
        seen[finding.rule] += 1
        if seen[finding.rule] <= _KEPT:
            kept.append(finding)
    return kept
