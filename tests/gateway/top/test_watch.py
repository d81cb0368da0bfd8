"""`tunery top` on a real gateway: what it says, with which key, and a server that goes away and comes back."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from openai import AsyncOpenAI
from rich.console import Console

from tests.gateway.api.conftest import Served, one_document, served, tokenizer_folder
from tunery.gateway.cli.ops import top as command
from tunery.gateway.cli.ops.top import top
from tunery.gateway.top.overview import Overview
from tunery.gateway.top.view import draw
from tunery.gateway.top.watch import Watch
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import InvalidInput, Unavailable

__all__ = ["one_document", "served", "settings", "tokenizer_folder"]


@pytest.fixture
def settings() -> ServeSettings:
    return ServeSettings(base="tiny", max_batch=4, max_waiting=400)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(top, arguments, standalone_mode=False)


async def test_an_overview_of_a_real_gateway(served: Served) -> None:
    served.publish("acme/support")
    served.publish("globex/legal", seed=1)
    _, admin = served.gateway.registry.keys.create(tenant="ops", scopes=("admin", "infer"), actor="test")
    _, token = served.gateway.registry.keys.create(tenant="acme", scopes=("infer",), actor="test")
    served.gateway.registry.start_job("job-1", adapter="acme/support", trainer="lora")
    await asyncio.sleep(0.6)
    with Watch(served.url, key=admin) as watch:
        assert await asyncio.to_thread(watch.look) is None
        client = AsyncOpenAI(base_url=f"{served.url}/v1", api_key=token, http_client=served.client._client)
        for _ in range(3):
            await client.completions.create(model="acme/support", prompt="Hi", max_tokens=4)
        seen = await asyncio.to_thread(watch.look)
        assert seen is not None
        (tenant,) = seen.tenants
        assert (tenant.name, tenant.adapters) == ("acme", 1)
        assert round(seen.requests * seen.seconds) == round(tenant.requests * seen.seconds) == 3
        assert seen.generated_tokens > 0
        assert seen.first_token_p50 is not None
        assert (seen.errors, seen.up, seen.jobs["running"]) == (0, True, 1)
        out = io.StringIO()
        Console(file=out, width=120).print(draw(seen, server=seen.server))
        assert "acme/support" in out.getvalue()
        assert "job (running 1)" in out.getvalue()
    done = await asyncio.to_thread(
        run, "--server", f"{served.url}/v1/", "--key", admin, "--once", "--json", "--interval", "0.1"
    )
    assert done.exception is None
    assert json.loads(done.output)["server"] == served.url
    for key in (token, None):
        with Watch(served.url, key=key) as watch, pytest.raises(InvalidInput, match="scope admin"):
            await asyncio.to_thread(watch.look)


def test_without_a_terminal_it_says_what_to_do() -> None:
    assert "--once" in str(run().exception)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    assert isinstance(run("--server", url, "--once").exception, Unavailable)


@pytest.mark.parametrize("url", ["ftp://x", "http://user:secret@host", "nonsense", "http://"])
def test_what_is_no_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        Watch(url, key=None)
    with pytest.raises(InvalidInput, match="the key"):
        Watch("http://host", key="a b")


@contextmanager
def scripted(answer: Callable[[str], tuple[int, bytes]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


@pytest.mark.parametrize("answer", [(200, b"<html>"), (200, b"go_goroutines 5\n"), (404, b""), (200, b"\xff\xfe")])
def test_other_servers_are_told_apart(answer: tuple[int, bytes]) -> None:
    with (
        scripted(lambda path: answer) as url,
        Watch(url, key=None) as watch,
        pytest.raises(InvalidInput, match="Tunery"),
    ):
        watch.look()


def test_it_goes_on_when_the_server_is_away_and_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    good = (200, b"# TYPE tunery_engine_up gauge\ntunery_engine_up 1\n")
    answers = iter([good, good, (503, b""), (401, b""), good, good])
    seen: list[tuple[Overview | None, str]] = []
    patient = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None)
    monkeypatch.setattr("tunery.gateway.cli.ops.top.time", patient)
    with (
        scripted(lambda path: next(answers) if path == "/metrics" else (403, b"")) as url,
        Watch(url, key=None) as watch,
    ):
        looks = command._looks(watch, 2.0)
        seen = [next(looks) for _ in range(6)]
    assert [overview is not None for overview, _ in seen] == [False, True, True, True, True, True]
    assert ["asking again" in away for _, away in seen] == [False, False, True, True, False, False]
    assert "HTTP 503" in seen[2][1]
    out = io.StringIO()
    Console(file=out, width=120).print(draw(seen[1][0], server=url, away=seen[2][1]))
    assert "HTTP 503" in out.getvalue()
