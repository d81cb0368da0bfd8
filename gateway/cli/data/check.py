"""`tunery data check`: report everything that is wrong with files of rows."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from tunery.gateway.cli.data.options import format_option, max_length_option
from tunery.gateway.cli.terminal.context import print_json, say
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.streams import is_utf8
from tunery.gateway.cli.terminal.tables import print_table
from tunery.gateway.cli.terminal.text import visible
from tunery.gateway.python.checking import check_data
from tunery.plugins.data.checks.report import KEPT
from tunery.registry.errors import InvalidData

if TYPE_CHECKING:
    from tunery.plugins.data.checks.report import DataReport

__all__ = ["check"]

_SHOWN, _ALIKE = 20, 3
"""Findings printed of one rule, and of those that differ only in their line."""


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--base", metavar="BASE", help="Render with this base, for the rules about tokens.")
@click.option(
    "--val", "validation", type=click.Path(path_type=Path), help="Held-out rows, which must not be trained on."
)
@format_option
@max_length_option
@click.option("--processes", type=click.IntRange(min=1), help="Processes to check with.  [default: one per core]")
@as_json
@click.option("--html", "as_html", is_flag=True, help="Print one HTML page.")
def check(
    files: tuple[Path, ...],
    base: str | None,
    validation: Path | None,
    format_name: str | None,
    max_length: int,
    processes: int | None,
    as_json: bool,
    as_html: bool,
) -> None:
    """Report everything that is wrong with files of rows; exit with 2 if anything is an error."""
    if as_json and as_html:
        raise click.UsageError("--json and --html exclude each other")
    report = check_data(
        files,
        base=base,
        validation=validation,
        max_length=max_length,
        format=format_name,
        processes=processes,
        on_message=say,
    )
    if as_json:
        print_json(msgspec.to_builtins(report) | {"errors": report.count("error")})
    elif as_html:
        from tunery.plugins.data.html_report import to_html

        page = to_html(report)
        # The page says that it is UTF-8; in ASCII it is that in any encoding.
        sys.stdout.write(page if is_utf8(sys.stdout) else page.encode("ascii", "xmlcharrefreplace").decode())
    else:
        _show_report(report)
    if number := report.count("error"):
        raise InvalidData(f"{number} error{'s' * (number > 1)} in the data; fix what is named and check again")


def _show_report(report: DataReport) -> None:
    shown = [tuple(map(visible, row)) for row in _first_rows(report)]
    print_table(("severity", "place", "path", "rule", "what and how to fix it"), shown, empty="nothing was found")
    for rule, severities in report.counts.items():
        for severity, number in severities.items():
            printed = sum(row[0] == severity and row[3] == rule for row in shown)
            if printed < number:
                click.echo(f"{rule}: {number - printed} more ({severity}); --json and --html have the first {KEPT}")
    for line in _figures(report.statistics):
        click.echo(visible(line))
    click.echo(f"{report.count('error')} errors, {report.count('warning')} warnings, {report.count('info')} notes")


def _first_rows(report: DataReport) -> list[tuple[str, str, str, str, str]]:
    """The first findings of each rule and severity, and of those that say the same the first few."""
    seen: Counter[tuple[str, ...]] = Counter()
    rows: list[tuple[str, str, str, str, str]] = []
    for f in report.findings:
        alike = (f.file, f.severity, f.rule, f.message)
        seen.update(((f.severity, f.rule), alike))
        if seen[f.severity, f.rule] <= _SHOWN and seen[alike] <= _ALIKE:
            place = f"{f.file}:{f.line}" if f.line else f.file
            rows.append((f.severity, place, f.path, f.rule, f"{f.message}; {f.fix}" if f.fix else f.message))
    return rows


def _figures(statistics: dict[str, Any]) -> list[str]:
    lines = [f"{file['file']}: {file['rows']} rows, {file['format'] or 'no format'}" for file in statistics["files"]]
    if tokens := statistics.get("tokens"):
        for name in ("total", "trained"):
            spread = ", ".join(f"{key} {tokens[name][key]}" for key in ("min", "p50", "p95", "max"))
            lines.append(f"{name} tokens a row: {spread}; {tokens[name]['sum']} in all")
        lines.append(
            f"{tokens['over_max_length']} rows over {tokens['max_length']} tokens, {tokens['lost']} tokens lost"
        )
    if diversity := statistics.get("diversity"):
        distinct = ", ".join(f"distinct-{n} {diversity[f'distinct_{n}']:.3f}" for n in (1, 2, 3))
        lines.append(
            f"answers: {distinct}, compress {diversity['compression_ratio']:.1f} to 1, {diversity['refusals']:.1%} refuse"
        )
    return lines
