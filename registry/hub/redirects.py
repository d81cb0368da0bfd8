"""Keep a Hub's redirects out of this machine's own network.

Files are downloaded from wherever the Hub's endpoint redirects to, such as a content delivery network. The endpoint was
chosen here, but a place that it redirects to was not: it has to be public.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tunery.registry.errors import ArtifactRefused, Unavailable
from tunery.registry.network.addresses import is_permitted

if TYPE_CHECKING:
    import httpx2

__all__ = ["guard_redirects"]

_chosen: set[str] = set()
"""Hosts of the endpoints that this process was told to use."""


def guard_redirects(endpoint: str) -> None:
    """Have the Hub's client check where it is redirected to. `endpoint` itself may be anywhere."""
    from huggingface_hub import set_client_factory

    if not _chosen:
        set_client_factory(_client)
    _chosen.add(urlsplit(endpoint).hostname or "")


def _client() -> httpx2.Client:
    """The client that huggingface_hub makes itself, with the check before each request, redirected ones included."""
    # There is no public way to get at it, and it has a hook of its own.
    from huggingface_hub.utils._http import default_client_factory

    client: httpx2.Client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "request": [*hooks["request"], _check]}
    return client


def _check(request: httpx2.Request) -> None:
    """Raise ArtifactRefused for a request to an address that is not public, Unavailable where it cannot be resolved."""
    host, scheme = request.url.host, request.url.scheme
    # Behind a proxy, names are resolved there, and what it may reach is its own business.
    if host in _chosen or (scheme in getproxies() and not proxy_bypass(host)):
        return
    try:
        found = socket.getaddrinfo(host, request.url.port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"the Hub redirects to {host}, which cannot be resolved: {error}") from error
    for info in found:
        address = ipaddress.ip_address(str(info[4][0]).partition("%")[0])
        if not is_permitted(address):
            raise ArtifactRefused(
                f"the Hub redirects to {host}, which is {address}: that is not a public address; nothing was changed",
                code="hub_redirect_refused",
            )
