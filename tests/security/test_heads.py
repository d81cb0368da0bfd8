"""Heads of requests that are too large, malformed, or mean one thing to a proxy and another here."""

from __future__ import annotations

import json

import pytest

from tests.gateway.api.conftest import Served
from tests.security.raw_http import exchange, request, statuses
from tunery.registry.keys.api_key import SCOPES

CHAT = "/v1/chat/completions"
JSON = "content-type: application/json"
CLOSE = b"connection: close\r\n"
HIDDEN = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n"
"""A request that a proxy in front would take for the body of another."""


def chunked(*headers: str, encoding: str = "chunked") -> bytes:
    return request("POST", CHAT, JSON, *headers, f"transfer-encoding: {encoding}")


HEADS = {
    "both lengths": (chunked("content-length: 4").replace(CLOSE, b"x-a: b\r\n") + b"0\r\n\r\n" + HIDDEN, 400),
    "chunks that are packed": (chunked(encoding="gzip, chunked") + b"0\r\n\r\n" + HIDDEN, 400),
    "chunks that are none": (chunked(encoding="xchunked") + b"0\r\n\r\n" + HIDDEN, 400),
    "an identity after chunks": (chunked(encoding="chunked, identity") + b"0\r\n\r\n" + HIDDEN, 400),
    "a space before the colon": (request("POST", CHAT, "transfer-encoding : chunked") + b"0\r\n\r\n" + HIDDEN, 400),
    "two lengths": (request("POST", CHAT, JSON, "content-length: 4", "content-length: 5") + b"12345", 400),
    "a length with a sign": (request("POST", CHAT, JSON, "content-length: +4") + b"1234", 400),
    "a negative length": (request("POST", CHAT, JSON, "content-length: -4") + b"1234", 400),
    "an endless length": (request("POST", CHAT, JSON, f"content-length: {'9' * 30}"), 400),
    "a chunk too long to count": (chunked() + b"FFFFFFFFFFFFFFFFF\r\n1\r\n0\r\n\r\n", 400),
    "an endless extension of a chunk": (chunked() + b"5;" + b"a" * 100_000 + b"\r\n12345\r\n0\r\n\r\n", 400),
    "endless trailers": (chunked() + b"2\r\n{}\r\n0\r\n" + b"x: y\r\n" * 50_000 + b"\r\n", 400),
    "two hosts": (request("GET", "/health/live", "host: evil.example"), 400),
    "two keys": (request("GET", "/v1/models", "authorization: Bearer a", "authorization: Bearer b"), 400),
    "two types": (request("POST", CHAT, JSON, "content-type: text/plain", body=b"{}"), 400),
    "a target elsewhere": (
        b"GET http://localhost/health/live HTTP/1.1\r\nhost: evil.example\r\n" + CLOSE + b"\r\n",
        403,
    ),
    "a tunnel": (b"CONNECT evil.example:443 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 405),
    "TRACE": (request("TRACE", "/v1/models"), 405),
    "a method without end": (request("A" * 5000, "/v1/models"), 405),
    "a folded header": (request("GET", "/health/live", "x-a: b\r\n c"), 400),
    "a lone carriage return": (request("GET", "/health/live", "x-request-id: a\rset-cookie: b"), 400),
    "a null byte": (request("GET", "/health/live", "x-request-id: a\0b"), 400),
    "a large header": (request("GET", "/health/live", "x-a: " + "a" * 300_000), 431),
    "many headers": (request("GET", "/health/live", *(f"x-{n}: a" for n in range(200))), 431),
    "a path too long": (request("GET", "/" + "a" * 300_000), 414),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
}


@pytest.mark.slow
async def test_heads_are_refused_once_and_nothing_behind_them_is_answered(served: Served) -> None:
    _, token = served.gateway.registry.keys.create(tenant="acme", scopes=SCOPES, actor="test")
    for name, (data, status) in HEADS.items():
        key = b"" if name == "two keys" else b"authorization: Bearer %s\r\n" % token.encode()
        answer = await exchange(served.url, data.replace(b"\r\n", b"\r\n" + key, 1))
        assert len(answer) < 2000, name
        got = statuses(answer)
        # A head too large may be refused before or after its line has been read.
        assert got == [status] or (got in ([414], [431]) and status in (414, 431)), (name, got, answer[:300])
        assert b"set-cookie" not in answer
        assert b"tunery_" not in answer
    assert statuses(await exchange(served.url, request("GET", "/health/live"))) == [200]


PATHS = (
    *("/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%2e%2e/%2e%2e/etc/passwd", "/v1/models/%00", "/v1/models/%ff%fe"),
    *("/v1/models/%ED%A0%80", "/v1/models/a%0d%0aset-cookie:%20x", "/v1/models/%EF%BD%81cme/support"),
    *("/v1/files/%2e%2e", "/v1/files/..%2f..%2f/content", "/v1/files/file-%00/content", "/v1/batches/%00"),
    *("/v1/fine_tuning/jobs/%2e%2e%2f/events", "/v1/evals/%00/runs/%00", "/v1/responses/..%2fx", "/docs/../v1/files/x"),
    *("/docs/%2e%2e/x", "/health/live/..%2f..%2fmetrics", "/v1/files?after=%00", "/v1/evals?after=%ED%A0%80"),
    *("/" + "a" * 5000, "/v1/files/" + "a" * 5000, "/v1/models/" + "a" * 5000),
)  # fmt: skip


@pytest.mark.slow
async def test_names_in_paths_lead_nowhere(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.publish("acme/support")
    _, token = served.gateway.registry.keys.create(tenant="acme", scopes=SCOPES, actor="test")
    for path in PATHS:
        answer = await exchange(served.url, request("GET", path, f"authorization: Bearer {token}"))
        assert statuses(answer) in ([404], [400]), (path, answer[:300])
        assert len(answer) < 1500, path
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"set-cookie" not in head
        assert json.loads(body)["error"]["message"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_path_cannot_write_a_line_of_the_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    _, token = served.gateway.registry.keys.create(tenant="acme", scopes=SCOPES, actor="test")
    deep = b'{"data_source": ' + b"[" * 100_000
    path = "/v1/evals/a%0aERROR%20forged%1b[31m/runs"
    answer = await exchange(served.url, request("POST", path, JSON, f"authorization: Bearer {token}", body=deep))
    assert statuses(answer) == [400]
    logged = [record.getMessage() for record in caplog.records]
    assert any("nested too deeply" in line for line in logged)
    assert not any("forged" in line or "\n" in line for line in logged)
