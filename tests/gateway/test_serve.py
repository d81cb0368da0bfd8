"""`tunery serve` as a process, and its drain under real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import openai
import pytest
from openai import InternalServerError
from openai.types.chat import ChatCompletionMessageParam

from tests.forked_process import run_tunery
from tests.gateway.serve_process import TINY, ServeProcess, overflow, publish, random_loras, start_server
from tests.narrowing import present
from tests.registry.artifacts import make_base
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.fake import FakeEngine
from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.gateway.gateway_process import serve
from tunery.gateway.metrics.recorder import Metrics
from tunery.gateway.resolver import Resolver
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.discovery import load_plugins
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import Unavailable
from tunery.registry.home import Home
from tunery.registry.registry import Registry

pytestmark = pytest.mark.slow

SECRET = "a phrase that no log may show"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": SECRET}]


def _breaking_at(text: str, folder: Path, base: Path) -> Path:
    """A LoRA that is sound until a token of `text` has been read, whose embedding is as large as float32 holds."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    tokens = Renderer(base).encode(text)[-1:]
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["o_proj"], trainable_token_indices=tokens)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(folder))
    path = folder / "adapter_model.safetensors"
    tensors = {key: tensor.fill_(1e30) if "tokens_delta" in key else tensor for key, tensor in load_file(path).items()}
    save_file(tensors, path)
    return folder


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Iterator[ServeProcess]:
    """One server with two versions of one adapter, for the tests that leave it running."""
    folder = tmp_path_factory.mktemp("serving")
    home = Home(folder / "home")
    with Registry.open(home) as registry:
        base = resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="tiny")
        publish(registry, base, random_loras(folder, tiny_base_folder, 2), name=lambda index: "acme/support")
        registry.move_alias("acme/support", "production", 1, actor="test")
        (lora,) = random_loras(folder / "broken", tiny_base_folder, 1)
        publish(registry, base, [overflow(lora)], name=lambda index: "acme/broken")
        publish(registry, base, [_breaking_at("Z", folder / "late", tiny_base_folder)], name=lambda index: "acme/late")
    with start_server(folder, home, tiny_base_folder, *TINY, "--access-log", "--hang-unready-seconds", "3") as running:
        yield running


def test_the_ready_line_names_an_address_that_answers(serving: ServeProcess) -> None:
    assert serving.url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{serving.url}/health/ready").json()["engine"] == "ok"
    raw = serving.client.chat.completions.with_raw_response.create(
        model="acme/support", messages=MESSAGES, max_tokens=8, temperature=0
    )
    tuned, base = (
        raw.parse(),
        serving.client.chat.completions.create(
            model=json.loads(httpx.get(f"{serving.url}/v1/models").text)["data"][0]["id"],
            messages=MESSAGES,
            max_tokens=8,
            temperature=0,
        ),
    )
    assert raw.headers["x-tunery-version"] == "1"
    assert tuned.choices[0].message.content != base.choices[0].message.content


def test_a_damaged_version_is_refused_with_a_code_and_the_others_are_served(serving: ServeProcess) -> None:
    with Registry.open(serving.home) as registry:
        weights = registry.files(registry.version("acme/support", 2))["adapter_model.safetensors"]
        other = registry.files(registry.version("acme/support", 1))["adapter_model.safetensors"]
        whole = weights.read_bytes()
        weights.write_bytes(other.read_bytes())
        with pytest.raises(InternalServerError) as caught:
            serving.client.chat.completions.create(model="acme/support@2", messages=MESSAGES, max_tokens=4)
        assert caught.value.code == "artifact_damaged"
        assert "tunery adapters verify acme/support@2" in str(caught.value)
        (logged,) = [line for line in serving.lines() if "do not match its digest" in line]
        assert str(weights) in logged
        assert serving.client.chat.completions.create(model="acme/support@1", messages=MESSAGES, max_tokens=4).choices
        assert [(one.version, one.path) for one in registry.verify()] == [
            ("acme/support@2", "adapter_model.safetensors")
        ]
        weights.write_bytes(whole)
    loaded = httpx.post(f"{serving.url}/v1/adapters/load", json={"adapter": "acme/support@2"}, timeout=60)
    assert loaded.status_code == 200, loaded.text
    assert serving.client.chat.completions.create(model="acme/support@2", messages=MESSAGES, max_tokens=4).choices


def test_a_backup_of_a_running_server_is_served_the_same(serving: ServeProcess, tmp_path: Path) -> None:
    environment = {**os.environ, "TUNERY_HOME": str(serving.home.root)}
    assert run_tunery("backup", str(tmp_path / "b.tar"), environment=environment).returncode == 0
    restored = Home(tmp_path / "home")
    restoring = run_tunery(
        "restore", str(tmp_path / "b.tar"), environment=environment | {"TUNERY_HOME": str(restored.root)}
    )
    assert (restoring.returncode, restoring.stderr) == (0, "")

    def answers(server: ServeProcess) -> list[str | None]:
        models = ("acme/support", "acme/support@2")
        asked = [
            server.client.completions.create(model=name, prompt="Hi", max_tokens=8, temperature=0) for name in models
        ]
        return [answer.choices[0].text for answer in asked]

    with start_server(tmp_path, restored, "tiny", *TINY, "--no-worker") as server:
        assert answers(server) == answers(serving)


@pytest.mark.skipif(load_kernels() is None, reason="only the native kernels read packed bases")
def test_the_engine_keeps_the_packed_base_for_its_next_start(serving: ServeProcess) -> None:
    (packed,) = serving.home.packed.glob("*.safetensors")
    assert list(serving.home.packed.glob("*.checked"))  # nor is it compared with transformers again
    assert packed.stat().st_size > 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems list what a process has loaded in other ways")
def test_the_gateway_never_loads_torch(serving: ServeProcess) -> None:
    gateway, engine = (Path(f"/proc/{pid}/maps").read_text() for pid in (serving.process.pid, serving.engine))
    assert "libtorch" not in gateway
    assert "libtorch" in engine


def test_an_alias_moved_by_the_command_line_is_served_by_the_next_request(serving: ServeProcess) -> None:
    def version() -> str:
        raw = serving.client.completions.with_raw_response.create(model="acme/support", prompt="x", max_tokens=1)
        return raw.headers["x-tunery-version"]

    assert version() == "1"
    for number in ("2", "1"):
        subprocess.run(
            [sys.executable, "-m", "tunery.gateway.cli", "adapters", "alias", "acme/support", "production", number],
            env=os.environ | {"TUNERY_HOME": str(serving.home.root)},
            check=True,
            capture_output=True,
        )
        assert version() == number


def test_the_access_log_is_json_and_holds_no_prompt(serving: ServeProcess) -> None:
    serving.client.chat.completions.create(model="acme/support@2", messages=MESSAGES, max_tokens=3)
    time.sleep(0.1)
    text = serving.log.read_text()
    assert SECRET not in text
    last = json.loads([line for line in text.splitlines() if '"/v1/chat/completions"' in line][-1])
    assert (last["model"], last["adapter"], last["version"], last["status"]) == (
        "acme/support@2",
        "acme/support",
        2,
        200,
    )
    assert last["completion_tokens"] == 3
    assert last["prompt_tokens"] > 3
    assert 0 < last["ttft_ms"] <= last["duration_ms"]
    assert last["request_id"]


@pytest.mark.parametrize("model", ["acme/broken", "acme/support:0.5+acme/broken:0.5"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_adapter_that_overflows_is_422_and_its_neighbours_answer(
    serving: ServeProcess, model: str, stream: bool
) -> None:
    client = serving.client
    asks: list[Callable[[], object]] = [
        lambda: client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=4, logprobs=True, stream=stream
        ),
        lambda: client.completions.create(model=model, prompt="x", max_tokens=4, stream=stream),
        lambda: client.completions.create(model=model, prompt="xyz", max_tokens=0, echo=True, logprobs=2),
        lambda: client.embeddings.create(model=model, input=["x", "y"]),
    ]
    for ask in asks:
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            ask()
        assert (caught.value.code, "acme/broken@1" in caught.value.message) == ("nonfinite_output", True)
    for sound in ("acme/support", "tiny"):
        usage = client.completions.create(model=sound, prompt="x", max_tokens=2, logprobs=1).usage
        assert present(usage).completion_tokens == 2


def test_an_adapter_that_overflows_in_the_middle_ends_its_stream_with_the_error(serving: ServeProcess) -> None:
    body = {"model": "acme/late", "prompt": "x", "max_tokens": 8, "guided_regex": "Z{8}", "stream": True, "logprobs": 1}
    with httpx.stream("POST", f"{serving.url}/v1/completions", json=body) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert (answer.status_code, events[-1]) == (200, "[DONE]")
    assert [json.loads(event)["choices"][0]["text"] for event in events[:-2]] == ["Z"]
    error = json.loads(events[-2])["error"]
    assert (error["code"], "acme/late@1" in error["message"]) == ("nonfinite_output", True)
    (logprob,) = json.loads(events[0])["choices"][0]["logprobs"]["token_logprobs"]
    assert -9999 <= logprob <= 0  # however unlikely, a number


def test_requests_that_come_while_a_killed_engine_is_replaced_are_held_and_answered(serving: ServeProcess) -> None:
    os.kill(serving.engine, signal.SIGKILL)
    deadline, ready, answers = time.monotonic() + 60, list[int](), list[int]()
    while not (503 in ready and ready[-1] == 200):
        assert time.monotonic() < deadline, (ready, answers)
        assert httpx.get(f"{serving.url}/health/live").status_code == 200
        ready.append(httpx.get(f"{serving.url}/health/ready").status_code)
        if ready[-1] == 503:
            body = {"model": "acme/support", "prompt": "x"}
            answers.append(httpx.post(f"{serving.url}/v1/completions", json=body, timeout=60).status_code)
        time.sleep(0.01)
    assert set(answers) == {200}
    assert "tunery_engine_restarts_total 1.0" in httpx.get(f"{serving.url}/metrics").text


def test_a_hung_engine_is_shown_and_recovers(serving: ServeProcess) -> None:
    def engine_up(up: int) -> bool:
        return f"tunery_engine_up {up}.0" in httpx.get(f"{serving.url}/metrics").text

    def ask() -> int:
        body = {"model": "acme/support", "prompt": "x", "max_tokens": 4}
        return httpx.post(f"{serving.url}/v1/completions", json=body, timeout=60).status_code

    engine = serving.engine
    stream = serving.client.completions.create(
        model="acme/support", prompt="x", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    chunks = [next(iter(stream))]
    os.kill(engine, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        try:
            asyncio.run(_until(lambda: httpx.get(f"{serving.url}/health/ready").json()["engine"] == "not responding"))
            assert httpx.get(f"{serving.url}/health/ready").status_code == 503
            assert engine_up(0)
            held = thread.submit(ask)
        finally:
            os.kill(engine, signal.SIGCONT)
        assert held.result(60) == 200
    chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    asyncio.run(_until(lambda: httpx.get(f"{serving.url}/health/ready").status_code == 200))
    assert engine_up(1)
    assert serving.engine == engine


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


def test_sigterm_lets_a_stream_finish_and_takes_the_engine_along(serving: ServeProcess) -> None:
    """Last of those that share the server, since it ends it."""
    stream = serving.client.completions.create(
        model="acme/support", prompt="x", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    chunks = [next(iter(stream))]
    serving.process.send_signal(signal.SIGTERM)
    chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert serving.process.wait(20) == 0
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(serving.home.root) not in left


def test_a_port_in_use_is_an_error_that_says_so(serving: ServeProcess, tiny_base_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "tunery.gateway.cli", "serve", "--base", str(tiny_base_folder), "--port", port],
            env=os.environ | {"TUNERY_HOME": str(serving.home.root)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in ended.stderr
    assert "Traceback" not in ended.stderr


# -- the same, in this process and with a fake engine, where time can be short -----------------------------------------


@dataclass
class Local:
    """A gateway served in this process until a signal ends it."""

    gateway: Gateway
    engine: FakeEngine
    serving: asyncio.Task[None]
    messages: list[str]

    @property
    def url(self) -> str:
        return self.messages[0].split()[1]


@pytest.fixture
async def local(registry: Registry, tiny_base_folder: Path, tmp_path: Path) -> AsyncIterator[Local]:
    base = registry.add_base(make_base(tmp_path / "base"))
    engine = FakeEngine([70] * 100, delay=0.01, base_digest=base.digest)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = ServeSettings(base="tiny", auth=False, port=probe.getsockname()[1], drain_delay=0, drain_seconds=1)
    gateway = Gateway(settings, registry, engine, Renderer(tiny_base_folder), Resolver(registry, base), Metrics())
    messages: list[str] = []
    serving = asyncio.create_task(serve(gateway, say=messages.append))
    while not messages and not serving.done():
        await asyncio.sleep(0.01)
    yield Local(gateway, engine, serving, messages)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def stream(local: Local, **changes: object) -> str:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 90, "stream": True, **changes}
    async with httpx.AsyncClient() as client:
        return (await client.post(f"{local.url}/v1/completions", json=body, timeout=20)).text


async def wait_in_flight(local: Local, count: int) -> None:
    while local.gateway.in_flight < count:
        await asyncio.sleep(0.01)


async def test_a_client_that_leaves_is_no_error_in_the_log(
    local: Local, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    local.engine.delay = 0.1

    for body in ({"stream": False}, {"stream": False, "n": 2}, {"stream": True}):
        leaving = asyncio.create_task(stream(local, **body))
        await wait_in_flight(local, int(body.get("n", 1)))
        await asyncio.sleep(0.3)
        leaving.cancel()
        while local.gateway.in_flight:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert len(local.engine.cancelled) == 4
    assert caplog.text == ""
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


async def test_a_drain_refuses_what_is_new_and_finishes_what_runs(local: Local) -> None:
    local.gateway.settings = msgspec.structs.replace(local.gateway.settings, drain_seconds=30)
    running = [asyncio.create_task(stream(local)) for _ in range(3)]
    await wait_in_flight(local, 3)
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{local.url}/health/ready")).status_code == 200
        os.kill(os.getpid(), signal.SIGTERM)
        while not local.gateway.draining:
            await asyncio.sleep(0.01)
        ready = await client.get(f"{local.url}/health/ready")
        assert (ready.status_code, ready.json()["draining"]) == (503, "yes")
        assert (await client.get(f"{local.url}/health/live")).status_code == 200
        refused = await client.post(f"{local.url}/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["retry-after"] == "1"
    for text in await asyncio.gather(*running):
        assert '"finish_reason":"length"' in text
        assert text.endswith("data: [DONE]\n\n")
    await asyncio.wait_for(local.serving, 10)


async def test_after_sigterm_requests_are_taken_until_load_balancers_have_noticed(local: Local) -> None:
    local.gateway.settings = msgspec.structs.replace(local.gateway.settings, drain_delay=60, drain_seconds=60)
    local.engine.delay = 0.5
    running = asyncio.create_task(stream(local))
    await wait_in_flight(local, 1)
    async with httpx.AsyncClient(verify=False) as client:
        os.kill(os.getpid(), signal.SIGTERM)
        while not local.gateway.draining:
            await asyncio.sleep(0.01)
        assert (await client.get(f"{local.url}/health/ready")).status_code == 503
        body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
        taken = await client.post(f"{local.url}/v1/completions", json=body, timeout=20)
        assert (taken.status_code, taken.headers["connection"]) == (200, "close")
    assert local.messages[-1] == "draining: new requests are taken for 60 s more; a second signal ends all now"
    os.kill(os.getpid(), signal.SIGTERM)
    assert "draining" in await running
    await asyncio.wait_for(local.serving, 10)


async def test_what_outlasts_the_drain_ends_with_an_error_in_the_stream(local: Local) -> None:
    local.engine.delay = 0.1
    running = asyncio.create_task(stream(local))
    await wait_in_flight(local, 1)
    started = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)
    text = await running
    assert '"code":"draining"' in text
    assert text.endswith("data: [DONE]\n\n")
    await asyncio.wait_for(local.serving, 10)
    assert time.monotonic() - started > 0.9


async def test_a_second_signal_does_not_wait(local: Local) -> None:
    local.gateway.settings = msgspec.structs.replace(local.gateway.settings, drain_seconds=60)
    local.engine.delay = 0.5
    running = asyncio.create_task(stream(local))
    await wait_in_flight(local, 1)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.05)
    assert "draining" in await running
    await asyncio.wait_for(local.serving, 10)


async def test_an_engine_that_never_gets_ready_ends_the_server_with_its_error(
    registry: Registry, tiny_base_folder: Path, tmp_path: Path
) -> None:
    base = registry.add_base(make_base(tmp_path / "base"))
    engine = FakeEngine(base_digest=base.digest)
    engine.die()
    gateway = Gateway(
        ServeSettings(port=0, auth=False),
        registry,
        engine,
        Renderer(tiny_base_folder),
        Resolver(registry, base),
        Metrics(),
    )
    with pytest.raises(Unavailable, match="dead"):
        await asyncio.wait_for(serve(gateway, say=lambda line: None), 10)
