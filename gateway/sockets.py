"""Resolves the address to serve on, finds a free port, and sets the kernel's limits on connections."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tunery.registry.errors import InvalidInput

__all__ = ["free_port", "limit_connections", "resolve_host"]

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


def limit_connections(port: int, *, write_seconds: int) -> None:
    """Have the kernel close connections whose peer accepts no data for `write_seconds`, or has silently disappeared.

    Granian does not expose its listening socket, so it is found among this process's open files by its `port`. Accepted
    connections inherit its options. Does nothing on systems other than Linux.
    """
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    for listener in _listeners(port):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * write_seconds)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


def _listeners(port: int) -> Iterator[socket.socket]:
    """This process's TCP sockets that listen on `port`, as duplicates."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as candidate:
                name = candidate.getsockname()
                listens = candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if listens and isinstance(name, tuple) and name[1] == port:
                    yield candidate
