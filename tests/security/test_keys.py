"""Every route, as the application lists them, with no key, a wrong one, one that has ended and one without the scope."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.gateway.api.conftest import Served
from tunery.gateway.app import HANDLERS
from tunery.gateway.tenancy.scopes import SCOPE
from tunery.registry.keys.api_key import SCOPES

OPEN = {"/health/live", "/health/ready"}
"""Routes that answer without a key; a new one has to be written here."""


def routes() -> Iterator[tuple[str, str, tuple[str, ...] | None]]:
    """Method, path and scopes of every route."""
    for handler in HANDLERS:
        for method in handler.http_methods:
            for path in handler.paths:
                yield str(method), path, handler.opt.get(SCOPE)


ROUTES = sorted(routes(), key=lambda route: route[:2])
GUARDED = [route for route in ROUTES if route[1] not in OPEN]


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, verify=False, timeout=60) as client:
        yield client


async def ask(http: httpx.AsyncClient, method: str, path: str, token: str | None) -> httpx.Response:
    """A request that would reach the handler."""
    path = path.replace("{name:path}", "acme/support")
    while "{" in path:
        path = path[: path.index("{")] + "x" + path[path.index("}") + 1 :]
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return await http.request(method, path, headers=headers, json={} if method == "POST" else None)


def test_every_route_says_what_it_needs() -> None:
    assert {path for _, path, scope in ROUTES if scope is None} == OPEN
    assert all(set(scope or ()) <= set(SCOPES) for _, _, scope in ROUTES)
    assert len(ROUTES) > 45


async def test_without_a_good_key_nothing_is_answered(served: Served, http: httpx.AsyncClient) -> None:
    keys = served.gateway.registry.keys
    created = {name: keys.create(tenant="acme", scopes=SCOPES, actor="test") for name in ("good", "revoked")}
    _, expired = keys.create(tenant="acme", scopes=SCOPES, actor="test", seconds=-1.0)
    keys.revoke(created["revoked"][0].id)
    good = created["good"][1]
    wrong = {
        "none": None,
        "unused": "unused",
        "another secret": f"{good.partition('.')[0]}.{'a' * 43}",
        "unknown": f"tn-abcdefghijkl.{'a' * 43}",
        "revoked": created["revoked"][1],
        "expired": expired,
        "two": f"{good}, {good}",
    }
    for method, path, _ in GUARDED:
        answers = set()
        for name, token in wrong.items():
            response = await ask(http, method, path, token)
            assert response.status_code == 401, (method, path, name, response.text)
            error = response.json()["error"]
            assert error["code"] == ("missing_api_key" if token is None else "invalid_api_key")
            challenge = "Bearer" if token is None else 'Bearer error="invalid_token"'
            assert response.headers["www-authenticate"] == challenge
            answers.add(error["message"])
        # Which of the reasons it is, nobody is told.
        assert len(answers) == 2, (method, path)
        assert (await ask(http, method, path, good)).status_code != 401, (method, path)


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_key_does_what_its_scope_allows(scope: str, served: Served, http: httpx.AsyncClient) -> None:
    key, token = served.gateway.registry.keys.create(tenant="acme", scopes=(scope,), actor="test")
    for method, path, needed in GUARDED:
        response = await ask(http, method, path, token)
        if scope in (needed or ()):
            assert response.status_code not in (401, 403), (method, path, response.text)
        else:
            assert response.status_code == 403, (method, path, response.text)
            assert response.json()["error"]["code"] == "insufficient_scope"
            assert key.id in response.json()["error"]["message"]


async def test_a_revoked_key_ends_within_a_second(served: Served, http: httpx.AsyncClient) -> None:
    import asyncio
    import time

    keys = served.gateway.registry.keys
    key, token = keys.create(tenant="acme", scopes=SCOPES, actor="test")
    assert (await ask(http, "GET", "/v1/models", token)).status_code == 200
    keys.revoke(key.id)
    deadline = time.monotonic() + 60
    while (await ask(http, "GET", "/v1/models", token)).status_code == 200:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_what_is_open_says_nothing_of_tenants(served: Served, http: httpx.AsyncClient) -> None:
    served.publish("acme/support")
    for path in sorted(OPEN):
        response = await http.get(path)
        assert response.status_code == 200
        assert "acme" not in response.text
