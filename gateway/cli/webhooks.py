"""`tunery webhooks`: the configured endpoints, how their deliveries stand, and a test of them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import rich_click as click

from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table
from tunery.gateway.cli.terminal.text import visible
from tunery.gateway.python.home import current_actor, open_registry
from tunery.registry.configuration.settings import read_settings
from tunery.registry.errors import NotFound, Unavailable, near
from tunery.registry.home import Home

if TYPE_CHECKING:
    from tunery.gateway.webhooks.sender import Answer
    from tunery.registry.configuration.webhooks import WebhooksSettings
    from tunery.registry.records import WebhookEvent

__all__ = ["webhooks"]

NONE_YET = "no endpoints yet: add [[webhooks.endpoints]] to config.toml"


@click.group()
def webhooks() -> None:
    """List the endpoints of webhooks, and send them a test."""


@webhooks.command("list")
@as_json
def list_endpoints(as_json: bool) -> None:
    """List the configured endpoints with what is pending, delivered and given up in the last seven days."""
    endpoints = _settings().endpoints
    with open_registry() as registry:
        states = [registry.webhooks.state(endpoint.url, kinds=endpoint.events) for endpoint in endpoints]
    listed = list(zip(endpoints, states, strict=True))
    if as_json:
        print_json(
            [
                {"url": endpoint.url, "events": endpoint.events, "pending": state.pending}
                | {"delivered": state.delivered, "given_up": state.given_up, "error": state.error}
                for endpoint, state in listed
            ]
        )
        return
    rows = [
        (endpoint.url, state.pending, state.delivered, state.given_up, visible(state.error or "-"))
        for endpoint, state in listed
    ]
    print_table(("url", "pending", "delivered", "given up", "last error"), rows, empty=NONE_YET)


@webhooks.command("test")
@click.argument("url", required=False)
def test_endpoints(url: str | None) -> None:
    """Send tunery.webhook.test to URL, or to every endpoint, and show the answers; exits with 6 unless all are 2xx."""
    from tunery.registry.webhooks.events import new_event

    settings = _settings()
    urls = [endpoint.url for endpoint in settings.endpoints]
    if not urls or (url is not None and url not in urls):
        raise NotFound(f"{url} is no endpoint: {near(url, urls)}" if url and urls else NONE_YET)
    event = new_event("tunery.webhook.test", {"actor": current_actor()}, at=time.time())
    answers = asyncio.run(_send(settings, [url] if url else urls, event))
    for to, answer in answers.items():
        click.echo(f"{to}  {f'HTTP {answer.status}' if answer.delivered else answer.problem}")
        if answer.body:
            click.echo(visible(answer.body.decode("utf-8", "replace")))
    if not all(answer.delivered for answer in answers.values()):
        raise Unavailable(f"{event.id} was not delivered everywhere", code="webhook_not_delivered")


async def _send(settings: WebhooksSettings, urls: list[str], event: WebhookEvent) -> dict[str, Answer]:
    from tunery.gateway.webhooks.sender import Sender

    async with Sender(settings) as sender:
        return dict(zip(urls, await asyncio.gather(*(sender.send(url, event) for url in urls)), strict=True))


def _settings() -> WebhooksSettings:
    return read_settings(Home.from_env().root).webhooks
