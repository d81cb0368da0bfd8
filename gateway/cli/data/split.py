"""`tunery data split`: hold out a share of a file's rows without leaks."""

from __future__ import annotations

from pathlib import Path

import msgspec
import rich_click as click

from tunery.gateway.cli.data.options import format_option, formats
from tunery.gateway.cli.terminal.context import plugins, print_json
from tunery.gateway.cli.terminal.options import as_json

__all__ = ["split"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--fraction", type=float, default=0.1, show_default=True, help="The share of the rows to hold out.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed holds out other rows.")
@click.option("--train", type=click.Path(path_type=Path), help="Where the other rows go.  [default: NAME.train.jsonl]")
@click.option("--val", "held_out", type=click.Path(path_type=Path), help="Where they go.  [default: NAME.val.jsonl]")
@click.option("--replace", is_flag=True, help="Replace files that exist.")
@click.option(
    "--allow", multiple=True, metavar="RULE", help="Split even if this rule of tunery data check finds errors."
)
@format_option
@as_json
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
    from tunery.plugins.data.split import SplitOptions, split_file
    from tunery.plugins.training.inputs.data_check import check_before_split

    check_before_split(file, allow=allow, plugins=plugins(), format=format_name)
    done = split_file(
        file,
        train or _beside(file, ".train.jsonl"),
        held_out or _beside(file, ".val.jsonl"),
        SplitOptions(fraction=fraction, seed=seed, replace=replace),
        formats=formats(format_name),
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
