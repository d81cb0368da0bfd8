"""The verdicts of gates, and the error that a failed gate becomes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from tunery.registry.errors import TrainingFailed

__all__ = ["GateResult", "GatesFailed", "Verdict", "check_gates", "failed", "passed", "skipped"]


class Verdict(msgspec.Struct, frozen=True):
    """What a gate found: `message` for people, `figures` for machines."""

    state: Literal["passed", "failed", "skipped"]
    message: str
    figures: dict[str, float] = {}


def passed(message: str, **figures: float) -> Verdict:
    """The gate holds."""
    return Verdict("passed", message, figures)


def failed(message: str, **figures: float) -> Verdict:
    """The gate does not hold; `message` says what to do about it."""
    return Verdict("failed", message, figures)


def skipped(reason: str, **figures: float) -> Verdict:
    """The gate cannot be judged here; the reason is recorded."""
    return Verdict("skipped", reason, figures)


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """A gate's verdict as it is stored; `code` is the error code that the job fails with when this gate fails."""

    name: str
    code: str
    passed: bool
    skipped: bool = False
    message: str
    figures: dict[str, float] = {}

    @property
    def failed(self) -> bool:
        """Whether this gate keeps the files from being published."""
        return not (self.passed or self.skipped)


class GatesFailed(TrainingFailed):
    """At least one gate failed; `code` is the first failed gate's, `results` are those of all gates."""

    def __init__(self, results: Sequence[GateResult], folder: Path) -> None:
        failures = [result for result in results if result.failed]
        lines = "\n".join(f"  {result.name} ({result.code}): {result.message}" for result in failures)
        super().__init__(
            f"{len(failures)} of {len(results)} gates failed, nothing was published:\n{lines}\nThe files are in {folder}. To publish "
            f"them all the same, which is recorded with the version: tunery train --resume {folder.parent.name} --force",
            code=failures[0].code,
        )
        self.results = tuple(results)


def check_gates(results: Sequence[GateResult], folder: Path) -> None:
    """Raise GatesFailed, naming every gate that failed on the files in `folder`."""
    if any(result.failed for result in results):
        raise GatesFailed(results, folder)
