"""Resolves the address to serve on, finds a free port, and listens there with the kernel's limits on connections."""

from __future__ import annotations

import socket

from tunery.registry.errors import InvalidInput

__all__ = ["BACKLOG", "free_port", "listen", "reserve", "resolve_host"]

BACKLOG = 1024
"""Connections that may wait to be accepted."""
PROBE_AFTER, PROBES = 60, 4
"""TCP keep-alive: seconds of silence before an idle peer is probed, and how many probes may go unanswered."""


def resolve_host(host: str) -> str:
    """The numeric address of `host`, IPv4 if it has one; raise InvalidInput when it cannot be resolved."""
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(
            f"the host {host!r} cannot be resolved ({error}); set --host to an address such as 127.0.0.1, or to "
            "0.0.0.0 for all",
            code="address_unknown",
        ) from error
    addresses = sorted(entries, key=lambda entry: entry[0] != socket.AF_INET)
    return str(addresses[0][4][0])


def free_port(host: str, port: int) -> int:
    """The port to serve on, which was free a moment ago; for port 0, one that the system chooses."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidInput(
                f"cannot listen on {host}:{port} ({error.strerror}); "
                "choose another port with --port, or 0 for any free one",
                code="address_in_use",
            ) from error
        bound: int = probe.getsockname()[1]
    return bound


def reserve(host: str, port: int) -> socket.socket:
    """A socket that does not listen, and keeps the port for the processes of this user that share it."""
    reserving = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserving.bind((host, port))
    except BaseException:
        reserving.close()
        raise
    return reserving


def listen(host: str, port: int, *, write_seconds: int, shared: bool = False) -> socket.socket:
    """A socket that listens there; a `shared` one beside those of other processes, among which the kernel spreads the
    connections.

    On Linux the kernel closes its connections whose peer accepts no data for `write_seconds`, or has silently
    disappeared: accepted connections inherit its options.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server(
        (host, port), family=family, backlog=BACKLOG, reuse_port=shared, dualstack_ipv6=both
    )
    listener.setblocking(False)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * write_seconds)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    return listener
