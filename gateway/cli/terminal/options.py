"""Options that several commands share, and reading what was given to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import rich_click as click

from tunery.registry.errors import InvalidInput
from tunery.registry.values import FieldDescription, describe_fields, read_value

__all__ = ["as_json", "parse_settings", "read_options", "server_key", "setting_options"]

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings", bound=msgspec.Struct)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
server_key = click.option(
    "--key",
    metavar="KEY",
    envvar=["TUNERY_API_KEY", "OPENAI_API_KEY"],
    help="The server's API key.  [env: TUNERY_API_KEY, OPENAI_API_KEY]",
)


def setting_options(settings: type[msgspec.Struct]) -> Callable[[Command], Command]:
    """An option for every field of a struct of settings; one that is not given is None, for `read_settings` or
    `read_options`."""

    def decorate(command: Command) -> Command:
        for field in reversed(describe_fields(settings)):
            command = _option(field)(command)
        return command

    return decorate


def read_options(settings: type[Settings], given: Mapping[str, Any]) -> Settings:
    """A struct with what was given to its `setting_options`, and its defaults for the rest; other options are ignored.

    Raises InvalidInput that says what the option may be.
    """
    types = {field.name: field.type for field in msgspec.structs.fields(settings)}
    values = {name: value for name, value in given.items() if name in types and value is not None}
    return settings(
        **{name: read_value(f"--{name.replace('_', '-')}", value, types[name]) for name, value in values.items()}
    )


def _option(field: FieldDescription) -> Callable[[Command], Command]:
    name, default = field.name.replace("_", "-"), field.default
    if default is True:
        return click.option(f"--{name}/--no-{name}", default=None, help=f"{field.description}  [default: {name}]")
    if default is False:
        return click.option(f"--{name}", is_flag=True, default=None, help=field.description)
    shown = field.description if default in ((), {}) else f"{field.description}  [default: {default}]"
    return click.option(f"--{name}", type=int if isinstance(default, int) else None, help=shown)


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """`name=value` pairs; raise InvalidInput for anything else."""
    values: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise InvalidInput(
                f"--set {setting!r}: write NAME=VALUE, for example learning_rate=2e-4", code="invalid_parameter"
            )
        values[name.strip()] = value.strip()
    return values
