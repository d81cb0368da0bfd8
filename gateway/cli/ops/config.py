"""`tunery config`: what the settings are, where they come from, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.context import plugins, print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table
from tunery.gateway.cli.terminal.text import visible
from tunery.registry.configuration.settings import Settings, read_settings
from tunery.registry.errors import InvalidInput
from tunery.registry.home import Home

__all__ = ["config"]


@click.group()
def config() -> None:
    """Show and check the configuration."""


@config.command("show")
@click.argument("sections", metavar="[SECTION]...", nargs=-1)
@click.option("--changed", is_flag=True, help="Only what is not a default.")
@click.option("--set", "options", multiple=True, metavar="SECTION.NAME=VALUE", help="As if this option was given too.")
@as_json
def show(sections: tuple[str, ...], changed: bool, options: tuple[str, ...], as_json: bool) -> None:
    """Show each setting's value and where it comes from: a default, config.toml, an environment variable or an option.

    Secrets are masked.
    """
    from tunery.registry.configuration.effective import effective_settings

    home = Home.from_env()
    found = effective_settings(home.root, overrides=_overrides(options))
    known = {setting.name.partition(".")[0] for setting in found}
    if unknown := sorted(set(sections) - known):
        raise InvalidInput(f"there is no section {unknown[0]!r}; there are {', '.join(sorted(known))}", param="section")
    shown = [
        setting
        for setting in found
        if (not sections or setting.name.partition(".")[0] in sections)
        and not (changed and setting.source == "default")
    ]
    if as_json:
        place = {"path": str(home.root), "source": "TUNERY_HOME" if os.environ.get("TUNERY_HOME") else "default"}
        print_json({"home": place, "settings": shown})
        return
    rows = [(setting.name, visible(_text(setting.value)), setting.source) for setting in shown]
    print_table(("setting", "value", "source"), rows, empty="every setting has its default")


@config.command("check")
def check() -> None:
    """Check config.toml and the environment, and report all problems at once; the exit code is 2 if there are any."""
    home, problems = Home.from_env(), []
    try:
        settings = read_settings(home.root)
    except InvalidInput as error:
        _, *problems = error.message.splitlines()
    else:
        problems = list(_problems(settings))
    if problems:
        raise InvalidInput("the configuration has problems:\n" + "\n".join(problems), code="invalid_settings")
    click.echo(f"{home.root / 'config.toml'} and the environment are valid")


def _problems(settings: Settings) -> Iterator[str]:
    """What is valid by itself, and does not work here."""
    from tunery.gateway.sockets import resolve_host
    from tunery.gateway.webhooks.signature import read_secret
    from tunery.plugins.runtime.device import check_device

    checks: list[tuple[str, Callable[[], object]]] = [
        ("serve.host", lambda: resolve_host(settings.serve.host)),
        ("serve.device", lambda: check_device(settings.serve.device)),
        ("jobs.executor", lambda: plugins().executor(settings.jobs.executor)),
    ]
    for number, endpoint in enumerate(settings.webhooks.endpoints):
        checks.append((f"webhooks.endpoints[{number}].secret", partial(read_secret, endpoint)))
    for name, check in checks:
        try:
            check()
        except InvalidInput as error:
            yield f"{name}: {error.message}"


def _overrides(options: Sequence[str]) -> dict[str, dict[str, str]]:
    given: dict[str, dict[str, str]] = {}
    for option in options:
        name, equals, value = option.partition("=")
        section, dot, field = name.partition(".")
        if not (equals and dot and section and field):
            raise InvalidInput(f"--set {option!r}: write SECTION.NAME=VALUE, such as serve.port=8001", param="set")
        given.setdefault(section, {})[field.replace("-", "_")] = value
    return given


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
