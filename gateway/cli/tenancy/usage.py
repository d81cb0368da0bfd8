"""`tunery usage`: what tenants used."""

from __future__ import annotations

import csv
import re
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import rich_click as click

from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table
from tunery.gateway.cli.terminal.text import visible
from tunery.gateway.python.home import open_registry
from tunery.registry.errors import InvalidInput

if TYPE_CHECKING:
    from tunery.registry.usage.records import UsageSum

__all__ = ["usage"]

TIME = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2})?)?")
SPANS = {"hour": 3600, "day": 86_400}
COLUMNS = (
    "time",
    "tenant",
    "key",
    "model",
    "endpoint",
    "batch",
    "requests",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "seconds",
)
NONE_YET = "nothing was used in that time"


@click.command()
@click.option("--tenant", "tenants", multiple=True, help="Only this tenant's; may be repeated.")
@click.option("--key", "keys", multiple=True, help="Only what this API key used; may be repeated.")
@click.option("--from", "start", help="From this day or minute (UTC), such as 2026-11-01.  [default: this month]")
@click.option("--to", "end", help="To before this day or minute (UTC).  [default: now]")
@click.option("--by", "span", type=click.Choice([*SPANS, "total"]), default="total", help="A row for each hour or day.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@as_json
def usage(
    tenants: tuple[str, ...],
    keys: tuple[str, ...],
    start: str | None,
    end: str | None,
    span: str,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Show requests and tokens by tenant, key, model and endpoint; `training` has the seconds that jobs computed.

    Times are whole hours in UTC. Running servers record what they answer within a second.
    """
    from tunery.registry.usage.records import UsageQuery

    now = time.time()
    month = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    first = int(month.timestamp()) if start is None else _time("--from", start)
    query = UsageQuery(
        start=first,
        end=int(now) + 1 if end is None else _time("--to", end),
        width=SPANS.get(span, 0),
        group=("tenant", "key", "model", "endpoint", "batch"),
        tenants=tenants,
        keys=keys,
    )
    with open_registry() as registry:
        rows = [_fields(each) for each in registry.usage.sums(query)]
    if as_json:
        print_json(rows)
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        print_table(COLUMNS, [[visible(str(row[name])) or "-" for name in COLUMNS] for row in rows], empty=NONE_YET)


def _fields(sums: UsageSum) -> dict[str, Any]:
    """A row as JSON and CSV show it."""
    return {
        "time": datetime.fromtimestamp(sums.start, UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "tenant": sums.tenant,
        "key": sums.key,
        "model": sums.model,
        "endpoint": sums.endpoint,
        "batch": bool(sums.batch),
        "requests": sums.requests,
        "input_tokens": sums.input_tokens,
        "cached_tokens": sums.cached_tokens,
        "output_tokens": sums.output_tokens,
        "seconds": sums.milliseconds / 1000,
    }


def _time(option: str, text: str) -> int:
    try:
        if TIME.fullmatch(text) is None:
            raise ValueError
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
    except ValueError as error:
        raise InvalidInput(
            f"{option} {text[:40]}: write a day or a minute, such as 2026-11-01 or 2026-11-01T12:00", param=option
        ) from error
