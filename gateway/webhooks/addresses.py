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
from tunery.registry.webhook_settings import Network

__all__ = ["Address", "is_permitted", "resolve"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")


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


def is_permitted(address: Address, permitted: Collection[Network]) -> bool:
    """Whether an address is public, or in a network that is allowed explicitly."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return _is_public(address) or any(address in network for network in permitted)


def _is_public(address: Address) -> bool:
    """Whether an address is of the open internet; those that carry an IPv4 address elsewhere are not."""
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    return address in _GLOBAL_IPV6 and address.sixtofour is None and address.teredo is None
