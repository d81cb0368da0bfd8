"""The headers that every response has."""

from __future__ import annotations

import time

import httpx
import pytest

from tests.gateway.api.conftest import Served, one_document, served, settings, tokenizer_folder
from tunery.gateway.api.http.response_headers import ResponseHeaders
from tunery.gateway.api.http.trace import Trace

__all__ = ["one_document", "served", "settings", "tokenizer_folder"]

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}


async def test_every_response_tells_browsers_and_caches_to_keep_out(served: Served) -> None:
    async with httpx.AsyncClient(verify=False, base_url=served.url) as client:
        responses = [
            await client.get("/health/live"),
            await client.get("/v1/models"),
            await client.get("/metrics"),
            await client.get("/nowhere"),
            await client.get("/"),
            await client.get("/docs"),
            await client.head("/docs"),
            await client.options("/v1/models"),
            await client.post("/v1/chat/completions", json=BODY),
            await client.post("/v1/chat/completions", json=BODY | {"stream": True}),
            await client.post("/v1/chat/completions", content=b"{"),
            await client.get("/v1/models", headers={"host": "evil.example"}),
        ]
    for response in responses:
        headers = response.headers
        assert headers["x-content-type-options"] == "nosniff", response.url
        assert headers["referrer-policy"] == "no-referrer"
        assert headers.get_list("cache-control") in (["no-store"], ["no-cache"])
        assert "strict-transport-security" not in headers, "only by HTTPS"
        assert "access-control-allow-origin" not in headers, "no other page may read an answer"
        assert float(headers["x-tunery-overhead-ms"]) >= 0
        is_page = headers.get("content-type", "").startswith("text/html")
        assert (headers.get("x-frame-options") == "DENY") is is_page
        assert ("default-src 'none'" in headers.get("content-security-policy", "")) is is_page
    assert [response.status_code for response in responses].count(200) == 7
    assert sum(response.headers.get("x-frame-options") == "DENY" for response in responses) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_the_overhead_is_the_time_that_is_not_the_engines(served: Served, stream: bool) -> None:
    served.engine.delay = 0.2
    started = time.perf_counter()
    response = await served.post("/v1/chat/completions", BODY | {"stream": stream})
    took = 1000 * (time.perf_counter() - started)
    assert took > 1000
    assert 0 < float(response.headers["x-tunery-overhead-ms"]) <= took - 1000


def test_what_a_response_says_itself_stays() -> None:
    given = [(b"Cache-Control", b"max-age=60"), (b"content-type", b"text/html"), (b"x-frame-options", b"SAMEORIGIN")]
    headers = ResponseHeaders(tls=True, leaving=lambda: True).add(given, Trace("an id"))
    assert headers[:3] == given
    names = [name.lower() for name, _ in headers]
    assert len(set(names)) == len(names)
    assert dict(headers)[b"strict-transport-security"] == b"max-age=31536000"
    assert dict(headers)[b"connection"] == b"close"
    assert dict(headers)[b"x-request-id"] == b"an id"
