"""Where `/admin/v1` is reached: at the port of everything else, or at a port of its own and nowhere else.

Both ports lead to one application. A server that only listens for administration marks its requests; the mark is in the
scope, where no client can put it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar.types import ASGIApp, Receive, Scope, Send

from tunery.gateway.api.http.errors import envelope

__all__ = ["Planes", "admin_plane"]

_PLANE = "tunery_plane"
_ADMIN = "admin"
_BOTH = frozenset({"health", "metrics", "docs"})
"""First parts of paths that the port of administration has too."""


class Planes:
    """An application of which each port has its part, where they are `separate`: what belongs to the other is not there."""

    def __init__(self, app: ASGIApp, *, separate: bool) -> None:
        self._app, self._separate = app, separate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        fields: dict[str, Any] = scope  # type: ignore[assignment]
        if self._separate and fields["type"] == "http" and not _is_here(fields):
            await _not_found(fields["path"], send)
        else:
            await self._app(scope, receive, send)


def admin_plane(app: ASGIApp) -> ASGIApp:
    """What a second server runs: the requests of `app`, marked. The first one's start and end are the application's."""

    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        fields: dict[str, Any] = scope  # type: ignore[assignment]
        if fields["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            fields[_PLANE] = _ADMIN
            await app(scope, receive, send)

    return marked


def _is_here(scope: dict[str, Any]) -> bool:
    """Whether a path belongs to the plane that it was asked on. Routing skips empty parts and blanks around a path."""
    parts = [part.strip() for part in scope["path"].split("/")]
    first = next((part for part in parts if part), "")
    if scope.get(_PLANE) == _ADMIN:
        return first == _ADMIN or first in _BOTH
    return first != _ADMIN


async def _not_found(path: str, send: Send) -> None:
    body = msgspec.json.encode(envelope(f"there is nothing at {path}; see /docs", status=404))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _lifespan(receive: Any, send: Any) -> None:
    """Answer a server's start and end without doing anything."""
    while True:
        if (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
