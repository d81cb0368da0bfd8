"""`tunery audit`: who changed what."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import rich_click as click

from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table, when
from tunery.gateway.cli.terminal.text import visible
from tunery.gateway.python.home import open_registry
from tunery.registry.errors import InvalidInput

if TYPE_CHECKING:
    from tunery.registry.audit.entry import AuditEntry

__all__ = ["audit"]


@click.command("audit")
@click.option("--tenant", help="Only what was changed of this tenant's.")
@click.option("--actor", help="Only what this key or user did, such as key:ID or user:NAME.")
@click.option("--action", help="Only this, such as key.create, or what was done with keys: key.")
@click.option("--from", "since", help="From this date or time on, such as 2026-01-31 or 2026-01-31T08:00.")
@click.option("--to", "until", help="Before this date or time.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="How many, at most.")
@as_json
def audit(
    tenant: str | None,
    actor: str | None,
    action: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List who changed what, newest first."""
    from tunery.registry.audit.log import AuditFilter

    wanted = AuditFilter(
        tenant=tenant, actor=actor, action=action, since=_time("--from", since), until=_time("--to", until)
    )  # fmt: skip
    with open_registry() as registry:
        entries, more = registry.audit.page(wanted, limit=limit)
    if as_json:
        print_json(entries)
        return
    header = ("when", "who", "what", "of", "tenant", "before", "after", "request")
    print_table(header, map(_row, entries), empty="nothing was changed yet, or nothing of that kind")
    if more:
        click.echo(f"the newest {limit}; --limit shows more", err=True)


def _row(entry: AuditEntry) -> tuple[str, ...]:
    who = f"{entry.actor} ({entry.label})" if entry.label else entry.actor
    return (
        when(entry.at),
        visible(who),
        entry.action,
        visible(entry.target),
        entry.tenant or "-",
        _words(entry.before),
        _words(entry.after),
        visible(entry.request_id) or "-",
    )


def _words(fields: dict[str, Any] | None) -> str:
    """What an entry says of a thing, without what is empty."""
    shown = {name: value for name, value in (fields or {}).items() if value not in (None, "", [], False)}
    texts = (
        f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}" for name, value in shown.items()
    )
    return visible(" ".join(texts)) or "-"


def _time(option: str, text: str | None) -> float | None:
    """Unix time of a date or time in ISO 8601, which is local unless it names an offset."""
    try:
        return None if text is None else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidInput(
            f"{option} {text}: write a date or a time such as 2026-01-31 or 2026-01-31T08:00", param=option
        ) from error
