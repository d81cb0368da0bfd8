"""`tunery limits`: show, set and clear what tenants and keys may use."""

from __future__ import annotations

from typing import Any

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.context import print_json, say
from tunery.gateway.cli.terminal.options import as_json, setting_options
from tunery.gateway.cli.terminal.tables import print_table
from tunery.gateway.python.home import current_actor, open_registry
from tunery.registry.configuration.limits import Limits
from tunery.registry.configuration.settings import read_settings
from tunery.registry.errors import InvalidInput
from tunery.registry.home import Home

__all__ = ["limits"]

NAMES = tuple(field.name for field in msgspec.structs.fields(Limits))
of_tenant = click.option("--tenant", required=True, help="Whose limits.")
of_key = click.option("--key", default="", help="Only this API key's, which count besides the tenant's.")


@click.group()
def limits() -> None:
    """Show, set and clear what tenants and keys may use.

    The configured limits ([limits] in config.toml) hold for every tenant that has none of its own. Running servers follow
    within a second.
    """


@limits.command("show")
@click.option("--tenant", help="Only this tenant's.")
@as_json
def show_limits(tenant: str | None, as_json: bool) -> None:
    """Show the configured limits, and those that were set for tenants and keys."""
    default = read_settings(Home.from_env().root).limits
    with open_registry() as registry:
        listed = [each for each in registry.limits.all().values() if tenant in (None, each.tenant)]
    configured = {name: getattr(default, name) for name in NAMES if getattr(default, name)}
    if as_json:
        own = [{"tenant": each.tenant, "key": each.key or None, "limits": each.values} for each in listed]
        print_json({"default": configured, "set": own})
        return
    rows = [("(default)", "-", name, f"{value:g}") for name, value in configured.items()]
    rows += [
        (each.tenant, each.key or "-", name, _shown(value))
        for each in listed
        for name, value in sorted(each.values.items())
    ]
    print_table(("tenant", "key", "limit", "value"), rows, empty="no limits yet: tunery limits set --tenant TENANT …")


@limits.command("set")
@of_tenant
@of_key
@setting_options(Limits)
def set_limits(tenant: str, key: str, **given: Any) -> None:
    """Set limits of a tenant, or of one of its keys; 0 is no limit. Those that are not given stay."""
    values = {name: value for name, value in given.items() if value is not None}
    if not values:
        raise InvalidInput("name a limit, for example --requests-per-minute 60", param="limit")
    with open_registry() as registry:
        registry.limits.set(tenant, values, key=key, actor=current_actor())
    say(f"{_whose(tenant, key)}: {', '.join(f'{name} {value}' for name, value in values.items())}")


@limits.command("clear")
@of_tenant
@of_key
@click.argument("names", nargs=-1)
def clear_limits(tenant: str, key: str, names: tuple[str, ...]) -> None:
    """Forget the limits NAMES of a tenant or key, all without any: the configured ones hold again."""
    with open_registry() as registry:
        count = registry.limits.clear(tenant, [name.replace("-", "_") for name in names], key=key)
    say(f"{_whose(tenant, key)}: {count} limits cleared")


def _whose(tenant: str, key: str) -> str:
    return f"the key {key} of {tenant}" if key else tenant


def _shown(value: float) -> str:
    return "none" if not value else str(int(value)) if value.is_integer() else f"{value:g}"
