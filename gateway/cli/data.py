"""`tunery data`: check files of examples, see what of a row is trained, and split a file without leaks."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.context import open_registry, plugins, print_json, say
from tunery.gateway.cli.terminal.streams import is_utf8
from tunery.gateway.cli.terminal.tables import print_table
from tunery.plugins.data.checks.report import KEPT
from tunery.registry.errors import InvalidData

if TYPE_CHECKING:
    from tunery.plugins.data.checks.report import DataReport
    from tunery.plugins.data.preview import Preview
    from tunery.plugins.hookspecs import FormatInfo

__all__ = ["data"]

_FORMAT = click.option("--format", "format_name", metavar="NAME", help="The rows' format.  [default: recognised]")
_MAX_LENGTH = click.option(
    "--max-length", type=click.IntRange(min=1), default=1024, show_default=True, help="Tokens that training keeps."
)
_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of what follows."""
_BEGIN, _END = "{+", "+}"
"""Around what is trained, where there is no colour: what wdiff and git diff --word-diff put around what was added."""
_SHOWN, _ALIKE = 20, 3
"""Findings of a rule that are printed, and of those that differ in nothing but their line."""
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def data() -> None:
    """Check, preview and split files of examples."""


@data.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--base", metavar="BASE", help="Render with this base, for the rules about tokens.")
@click.option(
    "--val", "validation", type=click.Path(path_type=Path), help="Held-out rows, which must not be trained on."
)
@_FORMAT
@_MAX_LENGTH
@click.option("--processes", type=click.IntRange(min=1), help="How many to check with.  [default: one a core]")
@_JSON
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
    """Report everything that is wrong with files of rows; exit with 2 where anything is an error."""
    if as_json and as_html:
        raise click.UsageError("--json and --html exclude each other")
    from tunery.plugins.data.checks.runner import check_data

    report = check_data(
        files,
        validation,
        plugins=plugins(),
        base_folder=_base_folder(base) if base else None,
        max_length=max_length,
        processes=processes,
        format=format_name,
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
        raise InvalidData(f"{number} error{'s' * (number > 1)} in the data; mend what is named and check again")


@data.command()
@click.argument("place", metavar="FILE:LINE")
@click.option("--base", default="smollm2-135m", show_default=True, help="The base to render with.")
@_FORMAT
@_MAX_LENGTH
@_JSON
def preview(place: str, base: str, format_name: str | None, max_length: int, as_json: bool) -> None:
    """Show a row as the base sees it, what is trained in colour, or between {+ and +} where there is none."""
    from tunery.plugins.data.preview import preview_line, read_place
    from tunery.plugins.data.render.renderer import Renderer

    path, number = read_place(place)
    renderer = Renderer(_base_folder(base))
    found = preview_line(path, number, formats=_formats(format_name), renderer=renderer, max_length=max_length)
    if as_json:
        print_json(found)
        return
    for example in found:
        _show_preview(example)


@data.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--fraction", type=float, default=0.1, show_default=True, help="The share of the rows to hold out.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed holds out other rows.")
@click.option("--train", type=click.Path(path_type=Path), help="Where the other rows go.  [default: NAME.train.jsonl]")
@click.option("--val", "held_out", type=click.Path(path_type=Path), help="Where they go.  [default: NAME.val.jsonl]")
@click.option("--replace", is_flag=True, help="Replace files that exist.")
@click.option("--allow", multiple=True, metavar="RULE", help="Split although this rule of data check finds errors.")
@_FORMAT
@_JSON
def split(
    file: Path,
    fraction: float,
    seed: int,
    train: Path | None,
    held_out: Path | None,
    replace: bool,
    allow: tuple[str, ...],
    format_name: str | None,
    as_json: bool,
) -> None:
    """Hold out a share of the rows; equal prompts and near duplicates stay on one side.

    A file in which data check finds an error is not split.
    """
    from tunery.plugins.data.split import split_file
    from tunery.plugins.training.job.data_check import check_before_split

    check_before_split(file, allow=allow, plugins=plugins(), format=format_name)
    done = split_file(
        file,
        train or _beside(file, ".train.jsonl"),
        held_out or _beside(file, ".val.jsonl"),
        formats=_formats(format_name),
        fraction=fraction,
        seed=seed,
        replace=replace,
    )
    if as_json:
        print_json(msgspec.structs.asdict(done) | {"train": str(done.train), "held_out": str(done.held_out)})
        return
    click.echo(f"{done.train}: {done.train_rows} rows")
    click.echo(f"{done.held_out}: {done.held_out_rows} rows")
    click.echo(f"{done.groups} groups of rows that belong together, none on both sides")


def _beside(file: Path, ending: str) -> Path:
    """Where a half goes: `rows.train.jsonl` for rows.csv.gz, and for a folder called rows."""
    plain = file.absolute() if file.is_dir() else file.with_suffix("") if file.suffix == ".gz" else file
    return plain.with_name(plain.name + ending) if file.is_dir() else plain.with_suffix(ending)


def _base_folder(base: str) -> Path:
    from tunery.plugins.bases.resolve import resolve_base

    with open_registry() as registry:
        return Path(resolve_base(base, registry=registry, plugins=plugins(), say=say).path)


def _formats(name: str | None) -> list[FormatInfo]:
    found = plugins()
    return [found.format(name)] if name else list(found.formats().values())


def _show_report(report: DataReport) -> None:
    shown = [tuple(map(visible, row)) for row in _first_rows(report)]
    print_table(("severity", "place", "path", "rule", "what and how to fix it"), shown, empty="nothing was found")
    for rule, severities in report.counts.items():
        for severity, number in severities.items():
            told = sum(row[0] == severity and row[3] == rule for row in shown)
            if told < number:
                click.echo(f"{rule}: {number - told} more ({severity}); --json and --html have the first {KEPT}")
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
    if found := statistics.get("diversity"):
        distinct = ", ".join(f"distinct-{n} {found[f'distinct_{n}']:.3f}" for n in (1, 2, 3))
        lines.append(
            f"answers: {distinct}, compress {found['compression_ratio']:.1f} to 1, {found['refusals']:.1%} refuse"
        )
    return lines


def _show_preview(example: Preview) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    in_colour = console.color_system is not None and not console.no_color
    text = Text()
    for segment in example.segments:
        shown = visible(segment.text)
        marked = shown if in_colour or not segment.trained else f"{_BEGIN}{shown}{_END}"
        text.append(marked, style="bold green" if segment.trained else "dim")
    console.print(text)
    cut = f", the last {example.cut} beyond max_length" if example.cut else ""
    how = "bold green" if in_colour else f"between {_BEGIN} and {_END}"
    say(f"{len(example.ids)} tokens, {sum(example.trained)} trained ({how}){cut}")


def visible(text: str) -> str:
    """The text with control characters as pictures of them, so that a row cannot steer the terminal."""
    return "".join(_picture(character) for character in text)


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20 and character != "\n":
        return chr(0x2400 + code)
    return "\ufffd" if 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or character in _BIDI else character
