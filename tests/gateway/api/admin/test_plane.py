"""The admin API at a port of its own: there and nowhere else, however its path is written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunery.gateway.api.admin.plane import Planes, admin_plane


async def ask(path: str, *, admin: bool, separate: bool = True) -> tuple[int, bytes]:
    """Status and body of the answer to a path."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"reached"})

    async def send(message: Any) -> None:
        sent.append(message)

    planes = Planes(app, separate=separate)
    called: Any = admin_plane(planes) if admin else planes
    await called({"type": "http", "path": path}, None, send)
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize(
    "path", ["/admin/v1/keys", "//admin/v1/keys", "/admin", "/admin/", " /admin/v1/keys", "/ admin/v1", "/admin/../v1"]
)
async def test_administration_is_at_its_own_port_alone(path: str) -> None:
    status, body = await ask(path, admin=False)
    assert status == 404
    assert json.loads(body)["error"]["message"] == f"there is nothing at {path}; see /docs"
    assert await ask(path, admin=True) == (200, b"reached")
    assert await ask(path, admin=False, separate=False) == (200, b"reached")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/admin", "/", "/administration", "/docs2"])
async def test_everything_else_is_at_the_other(path: str) -> None:
    assert await ask(path, admin=False) == (200, b"reached")
    assert (await ask(path, admin=True))[0] == 404


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics", "/docs"])
async def test_monitoring_is_at_both(path: str) -> None:
    assert [(await ask(path, admin=admin))[0] for admin in (True, False)] == [200, 200]
