"""`tunery adapters alias`, `history` and `rollback`: move aliases, and see who moved them."""

from __future__ import annotations

from typing import Any

import rich_click as click

from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table, when
from tunery.gateway.python.home import current_actor, open_registry
from tunery.registry.names import PRODUCTION

__all__ = ["COMMANDS"]


@click.command("alias")
@click.argument("adapter")
@click.argument("alias")
@click.argument("number", type=int, required=False)
@click.option("--expect", type=int, help="Only if it points at this version now; 0: only if there is no such alias.")
@click.option("--drop", is_flag=True, help="Delete the alias.")
@click.option("--reason", default="", help="The reason, kept in the history.")
@as_json
def alias(
    adapter: str, alias: str, number: int | None, expect: int | None, drop: bool, reason: str, as_json: bool
) -> None:
    """Point ALIAS of ADAPTER at version NUMBER. Running servers follow with their next request."""
    if (number is None) != drop:
        raise click.UsageError("name a version: tunery adapters alias acme/support production 3 (or --drop)")
    expectation: dict[str, Any] = {} if expect is None else {"expected": expect or None}
    with open_registry() as registry:
        if number is None:
            moved = registry.drop_alias(adapter, alias, actor=current_actor(), reason=reason, **expectation)
        else:
            moved = registry.move_alias(adapter, alias, number, actor=current_actor(), reason=reason, **expectation)
    if as_json:
        print_json(moved)
    else:
        click.echo(f"{moved.adapter}@{moved.alias}: {moved.before or 'none'} → {moved.after or 'none'}")


@click.command("history")
@click.argument("adapter")
@click.argument("alias", required=False)
@as_json
def history(adapter: str, alias: str | None, as_json: bool) -> None:
    """List every move of ADAPTER's aliases, oldest first."""
    with open_registry() as registry:
        moves = registry.history(adapter, alias)
    if as_json:
        print_json(moves)
        return
    rows = [(when(m.moved_at), m.alias, m.before or "-", m.after or "-", m.actor, m.reason or "-") for m in moves]
    print_table(("when", "alias", "from", "to", "who", "why"), rows, empty="no alias has been moved yet")


@click.command("rollback")
@click.argument("adapter")
@click.argument("alias", default=PRODUCTION)
@click.option("--expect", type=int, help="Only if it points at this version now.")
@click.option("--reason", default="rollback", help="The reason, kept in the history.")
@as_json
def rollback(adapter: str, alias: str, expect: int | None, reason: str, as_json: bool) -> None:
    """Point ALIAS (production) where it pointed before."""
    expectation: dict[str, Any] = {} if expect is None else {"expected": expect or None}
    with open_registry() as registry:
        moved = registry.rollback(adapter, alias, actor=current_actor(), reason=reason, **expectation)
    if as_json:
        print_json(moved)
    else:
        click.echo(f"{moved.adapter}@{moved.alias}: {moved.before or 'none'} → {moved.after}")


COMMANDS = (alias, history, rollback)
