"""The settings of webhooks: which endpoint hears what, and which hosts may be connected to.

Only shapes are checked here. What a name resolves to is checked when a webhook is sent.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

import msgspec

from tunery.registry.errors import near
from tunery.registry.network.addresses import Network
from tunery.registry.values import about

__all__ = ["EVENT_TYPES", "WebhookEndpoint", "WebhooksSettings", "decode_secret", "networks", "problems"]

EVENT_TYPES = (
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "tunery.alias.moved",
)
MAX_ENDPOINTS = 16
MAX_URL = 2000
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")


class WebhookEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place that webhooks are sent to."""

    url: Annotated[str, about("Where to send it.")] = ""
    secret: Annotated[str, about("The key that signs: whsec_…, env:VARIABLE or file:PATH.")] = ""
    events: Annotated[tuple[str, ...], about("Types of events to send.")] = EVENT_TYPES

    def __repr__(self) -> str:
        """Without the secret, and of the URL only the host: the rest may be what lets one in there."""
        return f"WebhookEndpoint(host={getattr(_split(self.url), 'hostname', None)!r}, events={self.events!r})"


class WebhooksSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Webhooks about jobs and aliases, which `tunery serve` and `tunery worker` send."""

    allow: Annotated[
        tuple[str, ...],
        about(
            "Hosts that webhooks may be sent to. Loopback, private and link-local ones need their address or network here too."
        ),
    ] = ()
    endpoints: Annotated[
        tuple[WebhookEndpoint, ...], about("Where to send webhooks, each with url, secret and events; see jobs.md.")
    ] = ()


def problems(settings: WebhooksSettings) -> Iterator[str]:
    """What is wrong with the settings, a line each; secrets are never shown."""
    for entry in settings.allow:
        if _network(entry) is None and not _NAME.fullmatch(entry):
            yield f"webhooks.allow: {entry!r} is not the name of a host, an address or a network such as 10.0.0.0/8"
    if len(settings.endpoints) > MAX_ENDPOINTS:
        yield f"webhooks.endpoints has {len(settings.endpoints)} entries; at most {MAX_ENDPOINTS} are served"
    urls = [endpoint.url for endpoint in settings.endpoints]
    for number, endpoint in enumerate(settings.endpoints):
        name = f"webhooks.endpoints[{number}]"
        if (problem := _url_problem(endpoint.url, settings)) is not None:
            yield f"{name}.url {problem}"
        elif endpoint.url in urls[:number]:
            yield f"{name}.url is another endpoint's too; give one of them all events"
        if (problem := _secret_problem(endpoint.secret)) is not None:
            yield f"{name}.secret {problem}"
        yield from (
            f"{name}.events: unknown type {kind!r}: {near(kind, EVENT_TYPES)}"
            for kind in endpoint.events
            if kind not in EVENT_TYPES
        )


def networks(settings: WebhooksSettings) -> list[Network]:
    """The addresses and networks in `allow`."""
    return [network for entry in settings.allow if (network := _network(entry)) is not None]


def decode_secret(secret: str) -> bytes | None:
    """The key in `whsec_…`; None where it is not that."""
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True) if secret.startswith("whsec_") else None
    except binascii.Error:
        return None


def _url_problem(url: str, settings: WebhooksSettings) -> str | None:
    parts = _split(url)
    host = parts.hostname if parts else None
    if parts is None or host is None or len(url) > MAX_URL or not url.isascii() or not url.isprintable():
        return "is missing or not a URL such as https://example.com/hook"
    if parts.username is not None or parts.fragment:
        return "has a user name or a fragment; leave them out"
    if not _is_allowed(host, settings):
        return f"has the host {host!r}, which is not in webhooks.allow"
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        return "must begin with https://; http:// is for loopback only"
    return None


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _is_allowed(host: str, settings: WebhooksSettings) -> bool:
    address = _network(host)
    if address is None:
        return host in {entry.lower().rstrip(".") for entry in settings.allow}
    return any(address[0] in network for network in networks(settings))


def _is_loopback(host: str) -> bool:
    address = _network(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def _secret_problem(secret: str) -> str | None:
    if secret.startswith(("env:", "file:")) and secret.partition(":")[2]:
        return None
    if not decode_secret(secret):
        return "is missing or not whsec_ and base64; env:VARIABLE and file:PATH name where it is"
    return None
