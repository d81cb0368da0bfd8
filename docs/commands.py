"""The reference of the command line, for docs/cli.md: every command with its arguments and options,
and the exit codes."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator

import click

from tunery.gateway.api.http.errors import status_of
from tunery.gateway.cli import COMMANDS, cli
from tunery.gateway.cli.terminal.errors import exit_code
from tunery.registry import errors


def commands_reference() -> str:
    """A section for each command: what it does, how it is called, and its options."""
    return "\n\n".join(_section(command, context) for command, context in _commands(cli, click.Context(cli)))


def exit_codes_table() -> str:
    """Every kind of error with its exit code and HTTP status."""
    kinds = [kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)]
    kinds.sort(key=lambda kind: (exit_code(_made(kind)), len(kind.__mro__)))
    rows = ["| exit code | error | HTTP status | |", "|---|---|---|---|"]
    for kind in kinds:
        meaning = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        rows.append(f"| {exit_code(_made(kind))} | `{kind.__name__}` | {status_of(_made(kind))} | {meaning} |")
    return "\n".join(rows)


def _made(kind: type[errors.TuneryError]) -> errors.TuneryError:
    error: errors.TuneryError = kind.__new__(kind)
    return error


def _commands(group: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Every command of a group that is no group itself, with the context that knows its whole name."""
    for name in COMMANDS if group is cli else group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            raise SystemExit(f"there is no command {name}")
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
        else:
            yield command, inner


def _section(command: click.Command, context: click.Context) -> str:
    name = context.command_path.strip()
    name = name if name.startswith("tunery") else f"tunery {name}"
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    text = "\n\n".join(map(wrapped, inspect.cleandoc(command.help or "").split("\n\n")))
    rows = [_row(option) for option in command.params if isinstance(option, click.Option)]
    table = "\n".join(["| option | value | |", "|---|---|---|", *rows])
    return f"## {name}\n\n    {usage}\n\n{text}" + (f"\n\n{table}" if rows else "")


def wrapped(paragraph: str) -> str:
    """A paragraph in lines of up to 120 columns."""
    return textwrap.fill(" ".join(paragraph.split()), 120, break_long_words=False, break_on_hyphens=False)


def _row(option: click.Option) -> str:
    """An option's names, what follows it, and its help with the default."""
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag or option.count else f"`{option.make_metavar(click.Context(cli))}`"
    shown = (option.help or "").replace("|", r"\|")
    if option.show_default and isinstance(option.default, str | int | float | tuple):
        default = ", ".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
        shown += f" [default: {default}]"
    return f"| {names} | {value.replace('|', chr(92) + '|')} | {' '.join(shown.split())} |"
