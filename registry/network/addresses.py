"""Which addresses may be connected to: those of the open internet, and those that are allowed explicitly.

Webhooks and downloads from a Hub are held to it, so that neither reaches what only this machine's network can.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

__all__ = ["Address", "Network", "is_permitted"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")


def is_permitted(address: Address, permitted: Collection[Network] = ()) -> bool:
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
