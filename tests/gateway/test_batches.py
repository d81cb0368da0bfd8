"""Batches beside kills: servers die again and again, and in the end each request is answered exactly once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec
import openai
import pytest

from tests.gateway.serve_process import TINY, start_server
from tests.registry.artifacts import make_base
from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.registry.home import Home
from tunery.registry.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
QUANT = ("--quant", "nf4" if load_kernels() else "none")
SERVER = """
import asyncio, os, sys
from pathlib import Path
from tunery.gateway.api.state import Gateway
from tunery.gateway.batches import run, runner
from tunery.gateway.engine.fake import FakeEngine
from tunery.gateway.metrics.recorder import Metrics
from tunery.gateway.resolver import Resolver
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.batches.batches import Batches
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.configuration.settings import ServeSettings

LEASE = 3.0
Batches.claim.__kwdefaults__["lease"] = Batches.advance.__kwdefaults__["lease"] = LEASE
run.LEASE_SECONDS, run.BEAT_SECONDS, runner.CLAIM_SECONDS = LEASE, LEASE / 6, 0.5
home, tokenizer, log = sys.argv[1:]

async def serve():
    registry = Registry.open(Home(Path(home)))
    renderer = Renderer(Path(tokenizer))
    base = registry.bases()[0]
    asked = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def reply(request):
        os.write(asked, b"x")
        return renderer.encode("Hello")

    engine = FakeEngine(reply, delay=0.005, base_digest=base.digest)
    settings = ServeSettings(base="tiny", auth=False, max_batch=4)
    gateway = Gateway(settings, registry, engine, renderer, Resolver(registry, base), Metrics())
    runner.BatchRunner(gateway).start()
    await asyncio.Event().wait()

asyncio.run(serve())
"""


def requests(folder: Path, count: int, *, model: str = "tiny", tokens: int = 8) -> Path:
    path = folder / "requests.jsonl"
    with path.open("w") as file:
        for number in range(count):
            messages = [{"role": "user", "content": f"Request {number}"}]
            body = {"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": True}
            print(json.dumps({"custom_id": str(number), "method": "POST", "url": CHAT, "body": body}), file=file)
    return path


def check_answered_once(text: str, count: int) -> None:
    lines = [json.loads(line) for line in text.splitlines()]
    assert Counter(line["custom_id"] for line in lines) == Counter(str(number) for number in range(count))
    assert {line["response"]["status_code"] for line in lines} == {200}
    assert [int(line["custom_id"]) for line in lines] == list(range(count))


def test_servers_are_killed_again_and_again_and_each_request_has_one_answer(
    home: Home, tmp_path: Path, tiny_base_folder: Path
) -> None:
    count, kills, log = 1200, 8, tmp_path / "asked"
    command = [sys.executable, "-c", SERVER, str(home.root), str(tiny_base_folder), str(log)]
    with Registry.open(home) as registry:
        registry.add_base(make_base(tmp_path / "base"))
        path = requests(tmp_path, count)
        file = registry.data_files.add(path, tenant="acme", purpose="batch", name=path.name)
        batch = registry.batches.submit(tenant="acme", endpoint=CHAT, input_file=file.id, details={})
        servers = [subprocess.Popen(command) for _ in range(2)]
        try:
            owners, progress, killed = set[str](), 0, 0
            deadline = time.monotonic() + 600
            while not (found := registry.batches.get(batch.id)).ended:
                assert time.monotonic() < deadline
                time.sleep(0.02)
                # Each server gets some answers done, and is killed in the middle of others.
                enough = found.counts.completed > progress + 60
                owner = next((s for s in servers if found.owner and f"/{s.pid}/" in found.owner), None)
                if killed < kills and enough and owner is not None:
                    owner.kill()
                    owner.wait()
                    owners.add(str(found.owner))
                    progress, killed = found.counts.completed, killed + 1
                    servers[servers.index(owner)] = subprocess.Popen(command)
        finally:
            for server in servers:
                server.kill()
                server.wait()
        assert (killed, len(owners)) == (kills, kills)
        assert (found.state, found.counts.completed, found.counts.failed) == ("completed", count, 0)
        output = registry.data_files.get(str(found.output_file))
        check_answered_once(registry.data_files.path(output).read_text(), count)
    # Only what was under way, or not yet written, was done again.
    assert count <= log.stat().st_size < count + 100 * kills


@contextmanager
def serving(folder: Path, home: Home, base: str, *arguments: str) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        servers = []
        for name in ("a", "b"):
            (folder / name).mkdir()
            servers.append(stack.enter_context(start_server(folder / name, home, base, *arguments)))
        yield servers


def end_of(client: openai.OpenAI, batch: openai.types.Batch) -> openai.types.Batch:
    deadline = time.monotonic() + 600
    while batch.status not in {"completed", "failed", "expired", "cancelled"}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    return batch


def test_another_server_goes_on_with_the_batch_of_one_that_was_killed(tmp_path: Path, tiny_base_folder: Path) -> None:
    count = 400
    home = Home(tmp_path / "home")
    with serving(tmp_path, home, str(tiny_base_folder), *TINY, "--no-worker") as servers:
        client = servers[0].client
        asked = requests(tmp_path, count, model=tiny_base_folder.name, tokens=40)  # not done before it is looked at
        file = client.files.create(file=asked, purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        with Registry.open(home) as registry:
            deadline = time.monotonic() + 300
            while not (found := registry.batches.get(batch.id)).counts.completed:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert found.owner is not None
        owner = next(server for server in servers if f"/{server.process.pid}/" in found.owner)
        (other,) = [server for server in servers if server is not owner]
        owner.process.send_signal(signal.SIGKILL)
        owner.process.wait()
        batch = end_of(other.client, batch)
        assert (batch.status, batch.error_file_id) == ("completed", None)
        check_answered_once(other.client.files.content(str(batch.output_file_id)).text, count)


def test_the_real_base_answers_a_batch_as_it_answers_over_http_and_others_meanwhile(
    tmp_path: Path, base_folder: Path, base_cache: Home
) -> None:
    with Registry.open(base_cache) as cache:
        known = cache.base("smollm2-135m")
    home = Home(tmp_path / "home")
    with Registry.open(home) as registry:
        registry.add_base(msgspec.structs.replace(known, name="base"))
    count = 12
    with start_server(tmp_path, home, "base", *QUANT, "--no-worker", "--max-batch", "4") as server:
        path = requests(tmp_path, count, model="base")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["body"] |= {"temperature": 0}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        upload = server.client.uploads.upload_file_chunked(
            file=path, mime_type="text/jsonl", purpose="batch", part_size=500
        )
        assert upload.file is not None
        batch = server.client.batches.create(input_file_id=upload.file.id, endpoint=CHAT, completion_window="24h")
        over_http = [httpx.post(server.url + CHAT, json=line["body"], timeout=300).json() for line in lines]
        batch = end_of(server.client, batch)
        assert batch.status == "completed"
        text = server.client.files.content(str(batch.output_file_id)).text
        check_answered_once(text, count)
        answers = [json.loads(line)["response"]["body"] for line in text.splitlines()]
        for mine, theirs in zip(answers, over_http, strict=True):
            assert mine["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]
            assert mine["choices"][0]["message"]["content"]
        same = [mine["choices"] == theirs["choices"] for mine, theirs in zip(answers, over_http, strict=True)]
        # What runs beside a request may round its numbers otherwise, so a token may differ now and then.
        assert sum(same) >= count // 2
