"""Show the report of a version: a few lines, the whole report, or as data; without control
characters, whoever wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from tunery.registry.errors import NotFound
from tunery.registry.versions.reports import is_imported

if TYPE_CHECKING:
    from tunery.registry import Version

__all__ = ["print_report", "report_data", "report_lines"]

CLAIMED = "the report is its publisher's claim: it came with the version and was not measured here"

Files = dict[str, Path]


def report_lines(version: Version, files: Files) -> list[str]:
    """What the report says, in short; nothing where there is none."""
    from tunery.plugins.training.report import read_report, summarize

    path = files.get("report/report.json")
    if path is None:
        return []
    report = read_report(path)
    lines = (
        ["the report was written by another version of Tunery: --report prints it"]
        if report is None
        else summarize(report)
    )
    return [_plain(line) for line in [*([CLAIMED] if is_imported(version) else []), *lines]]


def print_report(version: Version, files: Files) -> None:
    """The report and the samples, as they are stored; raise NotFound where there is none."""
    if "report/report.md" not in files:
        raise NotFound(f"{version.name} has no report: it was imported, or trained before there were any")
    if is_imported(version):
        click.echo(f"> {CLAIMED[0].upper()}{CLAIMED[1:]}.\n")
    for name in ("report/report.md", "report/samples.md"):
        if name in files:
            click.echo(_plain(files[name].read_text(encoding="utf-8")))


def report_data(files: Files) -> Any:
    """The report as data, or None."""
    path = files.get("report/report.json")
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def _plain(text: str) -> str:
    """What a terminal shows and does not obey."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")
