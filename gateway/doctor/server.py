"""Examine the port, and the server that answers on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import msgspec

from tunery.gateway.doctor.finding import Examined, Finding, fail, ok, warn
from tunery.gateway.sockets import free_port, resolve_host
from tunery.registry.errors import InvalidInput

__all__ = ["check_server", "holder_of_port"]

_TIMEOUT = httpx2.Timeout(2.0)
_LISTEN = "0A"
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def check_server(examined: Examined) -> Iterator[Finding]:
    """Whether the port is free, or a server of Tunery answers on it; or one at another URL."""
    if examined.server is not None:
        yield _answer(examined.server.rstrip("/").removesuffix("/v1"))
        return
    serve = examined.settings.serve
    try:
        host = resolve_host(serve.host)
    except InvalidInput as error:
        yield fail("port", error.message, "set serve.host")
        return
    if serve.port == 0 or _is_free(host, serve.port):
        yield ok("port", f"{host}:{serve.port} is free, and no server runs there" if serve.port else "any that is free")
        return
    near = _EVERYWHERE.get(host, host)
    shown = f"[{near}]" if ":" in near else near
    finding = _answer(f"http://{shown}:{serve.port}")
    holder = holder_of_port(serve.port)
    if finding.check == "server":
        yield finding
    else:
        yield fail(
            "port",
            f"{host}:{serve.port} is taken{f' by {holder}' if holder else ''}, and Tunery does not answer there",
            "end that process, or set serve.port",
        )


def _is_free(host: str, port: int) -> bool:
    try:
        free_port(host, port)
    except InvalidInput:
        return False
    return True


def _answer(url: str) -> Finding:
    """What the server at a URL says of itself; a finding about the port where that is none of Tunery's."""
    try:
        response = httpx2.get(f"{url}/health/ready", timeout=_TIMEOUT)
        checks = msgspec.json.decode(response.content, type=dict[str, str])
        state = checks.pop("status")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return fail("port", f"{url} does not answer ({error or type(error).__name__})", "start it, or check the URL")
    except (msgspec.DecodeError, KeyError):
        return fail("port", f"{url} does not answer as Tunery does", "check the URL")
    if state == "ready":
        return ok("server", f"{url} is ready")
    wrong = ", ".join(f"{name}: {value}" for name, value in sorted(checks.items()) if value != "ok")
    return warn("server", f"{url} is not ready ({wrong[:200]})", "it may be starting or draining; see its log")


def holder_of_port(port: int, *, proc: Path = Path("/proc")) -> str:
    """The process that listens on a port, as `name (pid)`; empty where that cannot be told."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in proc.glob("[0-9]*") if inodes else ():
        with suppress(OSError):
            if any(_target(link) in inodes for link in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} ({process.name})"
    return ""


def _target(link: Path) -> str:
    with suppress(OSError):
        return str(link.readlink())
    return ""
