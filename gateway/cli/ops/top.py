"""`tunery top`: a server's requests, tenants, adapters and jobs, as they are now."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.options import as_json
from tunery.registry.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from tunery.gateway.top.overview import Overview
    from tunery.gateway.top.watch import Watch

__all__ = ["top"]

_FIRST_SECONDS = 1.0
"""Between the first two looks, after which there is something to show."""


@click.command()
@click.option(
    "--server",
    metavar="URL",
    envvar="TUNERY_SERVER",
    default="http://127.0.0.1:8000",
    help="The server.  [env: TUNERY_SERVER, default: http://127.0.0.1:8000]",
)
@click.option(
    "--key", metavar="KEY", envvar="TUNERY_API_KEY", help="A key with the scope admin.  [env: TUNERY_API_KEY]"
)
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds between looks."
)
@click.option(
    "--most", type=click.IntRange(1, 1000), default=10, show_default=True, help="Tenants and adapters to show."
)
@click.option("--once", is_flag=True, help="Print once and end.")
@as_json
def top(server: str, key: str | None, interval: float, most: int, once: bool, as_json: bool) -> None:  # fmt: skip
    """Watch a server: requests, times to the first token, tenants, adapters in memory and training jobs.

    Rates and times are of the last 30 seconds. A server that goes away is asked again until it is back. With --json, a
    line for each look.
    """
    from tunery.gateway.top.watch import Watch

    with Watch(server, key=key, most=most) as watch:
        if once:
            _print(_first(watch, min(interval, _FIRST_SECONDS)), as_json=as_json)
        elif as_json:
            _forever(lambda: _follow_as_json(watch, interval))
        elif sys.stdout.isatty():
            _forever(lambda: _follow(watch, interval))
        else:
            raise click.UsageError("without a terminal use --once or --json")


def _first(watch: Watch, seconds: float) -> Overview:
    seen = watch.look()
    while seen is None:
        time.sleep(seconds)
        seen = watch.look()
    return seen


def _print(seen: Overview, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(seen).decode())
        return
    from rich.console import Console

    from tunery.gateway.top.view import draw

    Console(width=None if sys.stdout.isatty() else 120).print(draw(seen, server=seen.server))


def _looks(watch: Watch, interval: float) -> Iterator[tuple[Overview | None, str]]:
    """What is seen, over and over; after the last answer that, and why there is none."""
    seen, gone, answered = None, 0.0, False
    while True:
        began, away = time.monotonic(), ""
        try:
            seen = watch.look() or seen
            gone, answered = 0.0, True
        except (Unavailable, InvalidInput) as error:
            if isinstance(error, InvalidInput) and not answered:
                raise
            gone = gone or began
            watch.forget()
            away = f"{error.message}, for {began - gone:.0f} s; asking again"
        yield seen, away
        pause = interval if seen is not None or away else min(interval, _FIRST_SECONDS)
        time.sleep(max(0.0, pause - (time.monotonic() - began)))


def _follow(watch: Watch, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from tunery.gateway.top.view import draw

    with Live(draw(None, server=watch.url), console=Console(), screen=True, auto_refresh=False) as live:
        for seen, away in _looks(watch, interval):
            live.update(draw(seen, server=watch.url, away=away), refresh=True)


def _follow_as_json(watch: Watch, interval: float) -> None:
    for seen, away in _looks(watch, interval):
        if away:
            click.echo(msgspec.json.encode({"server": watch.url, "error": away}).decode())
        elif seen is not None:
            click.echo(msgspec.json.encode(seen).decode())
        sys.stdout.flush()


def _forever(follow: Callable[[], None]) -> None:
    try:
        follow()
    except KeyboardInterrupt:
        """That is how it ends."""
