"""The address to serve on: resolved to a number, known to be free, and with the kernel's limits on its connections."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tunery.registry.errors import InvalidInput

__all__ = ["free_port", "limit_connections", "resolve_host"]

PROBE_AFTER, PROBES = 60, 4
"""TCP keep-alive: seconds of silence before an idle peer is asked whether it still lives, and how often it is asked."""


def resolve_host(host: str) -> str:
    """The numeric address of `host`, an IPv4 one where it has one; raises InvalidInput when it is no name of this machine's."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(
            f"the host {host!r} cannot be resolved ({error}); give an address such as 127.0.0.1, or 0.0.0.0 for all, "
            "with --host",
            code="address_unknown",
        ) from error
    addresses = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return str(addresses[0][4][0])


def free_port(host: str, port: int) -> int:
    """The port to serve on, known to be free a moment ago; port 0 asks the system for one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidInput(
                f"{host}:{port} cannot be served on ({error.strerror}); choose another with --port, or 0 for any",
                code="address_in_use",
            ) from error
        found: int = probe.getsockname()[1]
    return found


def limit_connections(port: int, *, write_seconds: int) -> None:
    """Have the kernel close connections whose peer takes nothing for `write_seconds`, or is gone without a word.

    The server that listens on `port` in this process keeps its socket to itself, so it is looked for among the open files.
    Connections inherit the options of the socket that accepted them. Only Linux can do this; elsewhere nothing happens.
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
            with socket.socket(fileno=os.dup(int(entry.name))) as found:
                name = found.getsockname()
                listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if listens and isinstance(name, tuple) and name[1] == port:
                    yield found
