"""`tunery keys`: create, list, rotate and revoke API keys."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import rich_click as click

from tunery.gateway.cli.terminal.context import print_json, say
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table, when
from tunery.gateway.cli.terminal.text import visible
from tunery.gateway.python.home import current_actor, open_registry
from tunery.registry.errors import InvalidInput

if TYPE_CHECKING:
    from tunery.registry.keys.api_key import ApiKey

__all__ = ["keys"]

DURATION = re.compile(r"([0-9]{1,6})([smhd])")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
ONCE = "this is shown once; keep it where secrets are kept"


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys."""


@keys.command("create")
@click.option("--tenant", required=True, help="The tenant that the key belongs to.")
@click.option(
    "--scope", "scopes", multiple=True, default=("infer",), show_default=True, help="What it may do; may be repeated."
)
@click.option("--adapter", "adapters", multiple=True, help="A pattern of adapters it may use; may be repeated.")
@click.option("--label", default="", help="What the key is for.")
@click.option("--expires", help="How long it is good, such as 12h or 90d.  [default: until it is revoked]")
@as_json
def create_key(
    tenant: str, scopes: tuple[str, ...], adapters: tuple[str, ...], label: str, expires: str | None, as_json: bool
) -> None:
    """Create a key and print it, once."""
    seconds = None if expires is None else _seconds("--expires", expires)
    with open_registry() as registry:
        key, token = registry.keys.create(
            tenant=tenant, scopes=scopes, adapters=adapters, label=label, seconds=seconds, actor=current_actor()
        )
    _print_new(key, token, as_json=as_json)


@keys.command("list")
@click.option("--tenant", help="Only this tenant's.")
@as_json
def list_keys(tenant: str | None, as_json: bool) -> None:
    """List keys, oldest first; their secrets are not kept."""
    with open_registry() as registry:
        listed = registry.keys.list(tenant=tenant)
    if as_json:
        print_json([_fields(key) for key in listed])
        return
    now = time.time()
    rows = [
        (
            key.id,
            key.tenant,
            ",".join(key.scopes),
            ",".join(key.adapters) or f"{key.tenant}/*",
            visible(key.label) or "-",
            when(key.created_at),
            when(key.expires_at) if key.expires_at is not None else "-",
            key.state(now),
        )
        for key in listed
    ]
    header = ("id", "tenant", "scopes", "adapters", "label", "created", "expires", "state")
    print_table(header, rows, empty="no keys yet: tunery keys create --tenant TENANT")


@keys.command("rotate")
@click.argument("key")
@click.option("--overlap", default="1d", show_default=True, help="How long the old key stays good, such as 0s or 12h.")
@as_json
def rotate_key(key: str, overlap: str, as_json: bool) -> None:
    """Create a key with the rights of KEY, which stays good for a while, and print it, once."""
    seconds = _seconds("--overlap", overlap)
    with open_registry() as registry:
        new, token = registry.keys.rotate(key, actor=current_actor(), overlap=seconds)
    _print_new(new, token, as_json=as_json)


@keys.command("revoke")
@click.argument("key")
def revoke_key(key: str) -> None:
    """End KEY now, for good."""
    with open_registry() as registry:
        revoked = registry.keys.revoke(key)
    say(f"{revoked.id} of {revoked.tenant} is revoked")


def _print_new(key: ApiKey, token: str, *, as_json: bool) -> None:
    if as_json:
        print_json(_fields(key) | {"key": token})
        return
    click.echo(token)
    say(f"{key.id}: {key.tenant}, {', '.join(key.scopes)}; {ONCE}")


def _fields(key: ApiKey) -> dict[str, Any]:
    """A key as JSON shows it."""
    return {
        "id": key.id,
        "tenant": key.tenant,
        "label": key.label,
        "scopes": key.scopes,
        "adapters": key.adapters,
        "state": key.state(time.time()),
        "created_at": key.created_at,
        "created_by": key.created_by,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "replaced_by": key.replaced_by,
    }


def _seconds(option: str, text: str) -> float:
    match = DURATION.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{option} {text}: write a whole number and s, m, h or d, such as 12h or 90d", param=option)
    return int(match[1]) * UNITS[match[2]]
