"""Resolve a host once, to an address that webhooks may be sent to.

Whoever sends connects to this address, not to the name: a name that resolves to something else a moment later changes
nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection

from tunery.registry.errors import InvalidInput, Unavailable
from tunery.registry.network.addresses import Address, Network, is_permitted

__all__ = ["resolve"]


async def resolve(host: str, port: int, *, permitted: Collection[Network]) -> Address:
    """The first permitted address of a host; raise Unavailable or InvalidInput (webhook_host_refused)."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"{host} cannot be resolved: {error}") from error
    addresses = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found]
    for address in addresses:
        if is_permitted(address, permitted):
            return address
    raise InvalidInput(
        f"{host} resolves to {', '.join(sorted(set(map(str, addresses))))}, which is not public: add the address or its "
        "network to webhooks.allow if that is meant",
        code="webhook_host_refused",
    )
