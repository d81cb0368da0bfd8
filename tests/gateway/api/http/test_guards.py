"""Requests refused before they are parsed, by host, origin, content type and encoding; and incomplete uploads."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import struct
from typing import Any

import httpx
import pytest

from tests.gateway.api.conftest import Served
from tests.gateway.api.test_metrics import scrape
from tunery.registry.configuration.settings import ServeSettings

CHAT, RAW, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
LOAD, UNLOAD = "/v1/adapters/load", "/v1/adapters/unload"
MESSAGES = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tiny", "messages": MESSAGES},
    RAW: {"model": "tiny", "prompt": "x"},
    EMBED: {"model": "tiny", "input": "x"},
}
BODY = BODIES[CHAT]
HALF = "\\ud800"


async def send(served: Served, path: str, body: bytes, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(verify=False) as client:
        return await client.post(
            served.url + path, content=body, headers={"content-type": "application/json"} | headers, timeout=20
        )


@pytest.fixture(autouse=True)
def _no_bug_is_logged(caplog: pytest.LogCaptureFixture) -> object:
    """A client's fault leaves no traceback."""
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def envelope(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


NO_TEXT = {
    b'{"model":"tiny","messages":[{"role":"user","content":"\xff"}]}': "not UTF-8",
    b'{"\xff":1}': "not UTF-8",
    '{"model":"tiny"}'.encode("utf-16"): "not UTF-8",
    b"\xef\xbb\xbf{}": "byte order mark",
    gzip.compress(b"{}"): "gzip",
    b"": "empty",
    b"{": "ends early",
    b"{]": "not JSON",
    b"null": "not a JSON object",
    b"[]": "not a JSON object",
}


async def test_the_error_for_a_body_that_is_no_text_names_its_kind(served: Served) -> None:
    for body, message in NO_TEXT.items():
        for path in (CHAT, RAW, EMBED, LOAD, UNLOAD):
            assert message in envelope(await send(served, path, body), 400)


@pytest.mark.slow
async def test_half_a_surrogate_is_refused_wherever_it_stands(served: Served) -> None:
    fields = ("model", "adapter", "user", "stop", "suffix", "guided_json", "guided_regex", "guided_grammar", "regex")
    deep: list[dict[str, Any]] = [
        {"tools": [{"type": "function", "function": {"name": "HALF"}}]},
        {"guided_choice": ["HALF"]},
        {"HALF": 1},
    ]
    for extra in [*({field: "HALF"} for field in fields), *deep]:
        for half in ("\\ud800", "x\\udfff", "\\ud800\\ud800"):
            for path in (CHAT, RAW):
                body = json.dumps({**BODIES[path], **extra}).replace("HALF", half).encode()
                envelope(await send(served, path, body), 400)


async def test_half_a_surrogate_in_a_schema_that_is_a_text(served: Served) -> None:
    schema = f'{{"const":"{HALF}"}}'
    for extra in (
        {"guided_json": schema},
        {"structured_outputs": {"json": schema}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
    ):
        for path in (CHAT, RAW):
            envelope(await send(served, path, json.dumps({**BODIES[path], **extra}).encode()), 400)


@pytest.mark.slow
async def test_a_version_no_integer_can_hold_does_not_exist(served: Served) -> None:
    served.publish("acme/docs")
    for digits in (19, 20, 200, 5000):
        name = "acme/docs@" + "9" * digits
        models = (name, f"{name}:0.5+acme/docs")
        bodies = [(path, {**body, "model": model}) for path, body in BODIES.items() for model in models]
        for path, body in [*bodies, (LOAD, {"adapter": name}), (UNLOAD, {"adapter": name})]:
            assert "does not exist" in envelope(await send(served, path, json.dumps(body).encode()), 404)
        async with httpx.AsyncClient(verify=False) as client:
            envelope(await client.get(f"{served.url}/v1/models/{name}"), 404)


async def test_what_a_page_may_send_without_asking_changes_nothing(served: Served) -> None:
    served.publish("acme/docs")
    pages = ((LOAD, {"adapter": "acme/docs", "pin": True}), (UNLOAD, {"adapter": "acme/docs"}), (CHAT, BODY))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json", "a/b"):
        for path, body in pages:
            response = await send(served, path, json.dumps(body).encode(), **{"content-type": kind})
            assert "application/json" in envelope(response, 415)
    assert (served.engine.loaded, served.engine.unloaded, served.engine.requests) == ([], [], [])


async def test_json_under_its_other_names_is_read(served: Served) -> None:
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/problem+json"):
        assert (await send(served, CHAT, json.dumps(BODY).encode(), **{"content-type": kind})).status_code == 200


async def test_a_compressed_body_is_refused_by_name(served: Served) -> None:
    for encoding in ("gzip", "br", "deflate, gzip"):
        response = await send(served, CHAT, gzip.compress(json.dumps(BODY).encode()), **{"content-encoding": encoding})
        assert encoding in envelope(response, 415)


async def test_on_loopback_only_loopback_names_are_answered(served: Served) -> None:
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.nip.io", "[::1", "10.0.0.1"):
        for path in ("/v1/models", "/docs", "/docs/openapi.json", "/health/live", "/metrics"):
            async with httpx.AsyncClient(verify=False) as client:
                assert "allowed_hosts" in envelope(await client.get(served.url + path, headers={"host": host}), 403)
        envelope(await send(served, LOAD, b'{"adapter":"acme/docs"}', host=host), 403)
    for host in ("localhost", "LOCALHOST:9", "127.0.0.1:80", "127.1.2.3", "[::1]:80", "me.localhost", "localhost."):
        assert (await send(served, CHAT, json.dumps(BODY).encode(), host=host)).status_code == 200


async def test_a_page_of_this_server_may_use_it_and_others_may_not(served: Served) -> None:
    body = json.dumps(BODY).encode()
    assert (await send(served, CHAT, body, origin=served.url)).status_code == 200
    for origin in ("https://evil.example", "null", "http://localhost:1", served.url.replace("http", "ftp"), "x"):
        assert "allowed_origins" in envelope(await send(served, CHAT, body, origin=origin), 403)


class TestSettings:
    """With hosts and origins of one's own."""

    @pytest.fixture
    def settings(self) -> ServeSettings:
        origins = ("https://app.example.com",)
        return ServeSettings(
            base="tiny", auth=False, allowed_hosts=("ai.example.com", "*.internal"), allowed_origins=origins
        )

    async def test_hosts(self, served: Served) -> None:
        body = json.dumps(BODY).encode()
        for host, status in {"AI.example.com": 200, "a.internal:80": 200, "localhost": 200, "example.com": 403}.items():
            assert (await send(served, CHAT, body, host=host)).status_code == status, host

    async def test_cors_headers_allow_a_listed_origin(self, served: Served) -> None:
        asking = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
        async with httpx.AsyncClient(verify=False) as client:
            for origin, allowed in (("https://app.example.com", True), ("https://evil.example", False)):
                preflight = await client.options(served.url + CHAT, headers={"origin": origin, **asking})
                assert (preflight.headers.get("access-control-allow-origin") == origin) is allowed
        response = await send(served, CHAT, json.dumps(BODY).encode(), origin="https://app.example.com")
        assert response.headers["access-control-allow-origin"] == "https://app.example.com"


class TestOnAnyAddress:
    """Beyond loopback a name may be anything: a service's, a pod's address."""

    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(base="tiny", auth=False, host="0.0.0.0")

    @pytest.mark.slow
    async def test_any_host_is_answered_and_origins_are_still_checked(self, served: Served) -> None:
        body = json.dumps(BODY).encode()
        assert (await send(served, CHAT, body, host="tunery.svc:8000")).status_code == 200
        assert (await send(served, CHAT, body, host="tunery.svc", origin="http://evil.example")).status_code == 403


def raw(served: Served, *, length: int | None) -> tuple[socket.socket, bytes]:
    """A connection, and the head of a request on it."""
    host, port = served.url.removeprefix("http://").split(":")
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{framing}\r\n\r\n"
    return socket.create_connection((host, int(port)), timeout=20), head.encode()


async def test_chunks_that_are_not_framed_are_the_clients_fault(served: Served) -> None:
    def send(chunks: bytes) -> bytes:
        connection, head = raw(served, length=None)
        with connection:
            connection.sendall(head + chunks)
            return connection.recv(4096)

    for chunks in (b"zz\r\n{}\r\n0\r\n\r\n", b"2\r\n{}0\r\n\r\n"):
        assert (await asyncio.to_thread(send, chunks)).startswith(b"HTTP/1.1 400 ")


async def test_an_upload_that_is_broken_off_counts_as_499(served: Served) -> None:
    key = ("tunery_http_requests_total", (("route", CHAT), ("status", "499")))
    for count, reset in enumerate((False, True), start=1):
        connection, head = raw(served, length=1000)
        await asyncio.to_thread(connection.sendall, head + b'{"model"')
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        async with asyncio.timeout(20):
            while (await scrape(served)).get(key) != count:
                await asyncio.sleep(0.02)


async def test_head_answers_what_get_would_without_its_body(served: Served) -> None:
    async with httpx.AsyncClient(verify=False) as client:
        for path in ("/health/live", "/health/ready", "/metrics", "/v1/models", "/docs"):
            head, get = await client.head(served.url + path), await client.get(served.url + path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == get.headers["content-type"]
        assert get.status_code == 200
        metrics = await client.get(served.url + "/metrics")
        assert metrics.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8", "one charset"
        served.gateway.draining = True
        assert (await client.head(served.url + "/health/ready")).status_code == 503
