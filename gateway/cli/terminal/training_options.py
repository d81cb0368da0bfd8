"""The options of `tunery train` and `tunery jobs submit` that say what to train, and what was given to them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.options import parse_settings

__all__ = ["TrainingOptions", "training_options"]

Command = Callable[..., Any]


class TrainingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to train, as it was given."""

    method: str
    base: str
    data: tuple[Path, ...]
    validation: Path | None
    adapter: str
    parent: str | None
    alias: str | None
    settings: tuple[str, ...]
    allow: tuple[str, ...]
    force: bool
    device: str

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters by name; raises InvalidInput for a setting that is not NAME=VALUE."""
        return parse_settings(self.settings)


def training_options(*, required: bool) -> Callable[[Command], Command]:
    """The options, given to the command as one argument `asked`; --data and --name may be `required`."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(*arguments: Any, **given: Any) -> Any:
            asked = {name: given.pop(name) for name in TrainingOptions.__struct_fields__}
            return command(*arguments, asked=TrainingOptions(**asked), **given)

        decorated: Command = wrapped
        for option in reversed(_options(required)):
            decorated = option(decorated)
        return decorated

    return decorate


def _options(required: bool) -> list[Callable[[Command], Command]]:
    option = click.option
    file = click.Path(path_type=Path)
    return [
        option("--method", default="lora", show_default=True, help="The trainer: lora, qlora, full, dpo, or a plugin's."),
        option("--base", default="smollm2-135m", show_default=True, help="The base: a name, folder, GGUF file or Hub id."),
        option("--data", multiple=True, required=required, type=file, help="A file of examples; may be repeated."),
        option("--val", "validation", type=file, help="Held-out rows.  [default: a share of --data]"),
        option("--name", "adapter", default=None if required else "", required=required, metavar="TENANT/NAME", help="The adapter to make a version of."),
        option("--from", "parent", metavar="REFERENCE", help="The version to continue from."),
        option("--alias", help="Point this alias at the new version."),
        option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter; see tunery plugins --trainer."),
        option("--allow", multiple=True, metavar="RULE", help="Train even if this rule of tunery data check finds errors."),
        option("--force", is_flag=True, help="Publish what fails a gate; recorded with the version."),
        option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …"),
    ]  # fmt: skip
