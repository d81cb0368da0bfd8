"""What a server writes while clients send it secrets, prompts and forged lines; and the access log's fields."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.api.conftest import Served, one_document, served, tokenizer_folder
from tests.gateway.fake_server import FakeServer, fake_server, free_ports
from tests.registry.artifacts import make_base
from tunery.gateway.engine.messages import Timings
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.home import Home
from tunery.registry.registry import Registry

__all__ = ["one_document", "served", "tokenizer_folder"]

PROMPT, PASSWORD = "my-prompt-is-private", "hunter2-not-for-logs"
FORGED = '{"level": "info", "forged": true}'
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> ServeSettings:
    prompts = getattr(request, "param", False)
    return ServeSettings(base="tiny", max_batch=4, max_waiting=400, access_log=True, log_prompts=prompts)


async def access_lines(served: Served, capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    async with asyncio.timeout(20):
        while served.gateway.requests.count:
            await asyncio.sleep(0.01)
    return [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"tunery.access"' in line]


@pytest.mark.parametrize("settings", [False, True], indirect=True, ids=["by default", "with prompts"])
async def test_an_access_line_says_who_asked_what_answered_and_how_long_it_took(
    served: Served, settings: ServeSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    version = served.publish("acme/support")
    served.engine.cached, served.engine.delay, served.engine.timings = 2, 0.01, Timings()
    key, token = served.gateway.registry.keys.create(tenant="acme", scopes=("infer",), actor="test")
    headers = {"authorization": f"Bearer {token}", "x-request-id": "one", "traceparent": CALLER}
    body = {"model": "acme/support", "prompt": PROMPT, "max_tokens": 3, "stream": True}
    async with httpx.AsyncClient(verify=False, base_url=served.url, headers=headers) as client:
        await client.post("/v1/completions", json=body)
        await client.post("/v1/completions", json=body | {"model": "acme/other"}, headers={"x-request-id": "two"})
        await client.get("/nowhere", headers={"x-request-id": "three"})
    lines = {line["request_id"]: line for line in await access_lines(served, capfd)}
    line = lines["one"]
    assert 0 < line.pop("ttft_ms") < line["duration_ms"]
    assert 0 < line.pop("overhead_ms") < line.pop("duration_ms")
    assert line.pop("prompt_tokens") > 3
    assert line.pop("time").endswith("Z")
    assert (json.loads(line.pop("prompt")) == body) if settings.log_prompts else PROMPT not in json.dumps(line)
    assert line == {
        "level": "info",
        "logger": "tunery.access",
        "request_id": "one",
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "tenant": "acme",
        "key": key.id,
        "model": "acme/support",
        "adapter": "acme/support",
        "version": 1,
        "digest": version.digest,
        "completion_tokens": 3,
        "cached_tokens": 2,
        "finish_reason": "length",
    }
    assert (lines["two"]["status"], lines["two"]["error"], lines["two"]["tenant"]) == (404, "model_not_found", "acme")
    assert (lines["three"]["status"], lines["three"]["route"]) == (404, "unknown")


@pytest.mark.slow
def test_no_output_of_a_server_has_secrets_prompts_or_forged_lines(tmp_path: Path, tiny_base_folder: Path) -> None:
    with Registry.open(Home(tmp_path / "home")) as registry:
        registry.add_base(make_base(tmp_path / "base"))
        _, token = registry.keys.create(tenant="acme", scopes=("infer", "train", "admin"), actor="test")
    settings = ServeSettings(
        base="tiny", port=free_ports(1)[0], drain_delay=0, access_log=True, log_format="json", log_level="debug"
    )
    with fake_server(Home(tmp_path / "home"), tiny_base_folder, settings, log=tmp_path / "log") as server:
        answered = _be_hostile(server, token)
        assert server.stop(signal.SIGTERM) == 0
    text = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert sum(line["logger"] == "tunery.access" for line in lines) >= answered > 10
    assert {200, 400, 401, 404} <= {line.get("status") for line in lines}
    assert {"invalid_api_key", "model_not_found", "not_found"} <= {line.get("error") for line in lines}
    assert not any(line.get("forged") for line in lines)
    for secret in (token, token.partition(".")[2], PROMPT, PASSWORD):
        assert secret not in text


def _be_hostile(server: FakeServer, token: str) -> int:
    """Send secrets wherever a request can have them; how many requests were answered."""
    completion = {"model": "tiny", "prompt": PROMPT, "max_tokens": 2}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2}
    bodies: list[tuple[str, Any]] = [
        ("/v1/completions", completion),
        ("/v1/completions", completion | {"stream": True}),
        ("/v1/completions", completion | {"unknown": PROMPT}),
        ("/v1/completions", completion | {"temperature": PROMPT}),
        ("/v1/completions", completion | {"model": f"a/{PASSWORD}\n{FORGED}"}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"tools": PROMPT}),
        ("/v1/chat/completions", [[[[PROMPT]]]]),
        ("/v1/embeddings", {"model": "tiny", "input": PROMPT}),
        ("/v1/responses", {"model": "tiny", "input": PROMPT, "store": True, "max_output_tokens": 2}),
    ]
    good = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=server.url, verify=False, timeout=60) as client:
        for path, body in bodies:
            client.post(path, json=body, headers=good)
        wrong = {"authorization": f"Bearer tn-x.{PASSWORD}", "cookie": PASSWORD, "user-agent": PASSWORD}
        client.post("/v1/completions", json=completion, headers=wrong)
        client.get(f"/v1/files/x%0d%0a{FORGED}?api_key={PASSWORD}", headers=good)
        client.get(f"/{PASSWORD}%0a{FORGED}", headers=good)
        client.post(
            "/v1/files", files={"file": (f"{PASSWORD}\r\n{FORGED}", PROMPT)}, data={"purpose": "x"}, headers=good
        )
    for name in ("x-request-id", "traceparent", "authorization", "host"):
        for value in (f"{PASSWORD}\n{FORGED}", f"{PASSWORD}\r{FORGED}", f"{PASSWORD}\0{FORGED}"):
            _send_raw(server, f"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n{name}: {value}\r\n\r\n")
    return len(bodies) + 4


def _send_raw(server: FakeServer, request: str) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request.encode())
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(2**16):
            """Until the server closes."""
