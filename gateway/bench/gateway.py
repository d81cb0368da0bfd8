"""Measure the gateway by itself, in front of the fake engine: latency at a steady rate, requests and tokens a second.

Then a real engine with streams over HTTP and without.

The gateway has one core to itself where the machine has two, and the clients the others. Latencies are those of an open
loop: a request is sent when its time has come, whatever became of those before it.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tunery.gateway.bench.driver import Driver
from tunery.gateway.bench.fake_gateway import FakeGateway
from tunery.gateway.bench.load import LoadGenerator
from tunery.gateway.bench.serving import served_base, server
from tunery.gateway.bench.suite import Row
from tunery.gateway.engine.config import EngineConfig
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry import Base
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import Unavailable
from tunery.registry.home import Home
from tunery.registry.keys.api_key import SCOPES, new_key
from tunery.registry.registry import Registry

__all__ = ["measure_gateway"]

RATE, SECONDS = 200, 10.0
CONNECTIONS = 32
TOKENS = 16
STREAM_TOKENS = 200
LONG_TOKENS, ROUNDS = 128, 5
PROMPT = "Once upon a time"


def measure_gateway(base: Base, say: Callable[[str], None]) -> list[Row]:
    """Latency at RATE requests a second, requests a second of a core, and tokens a second of a core over streams; then
    what streaming over HTTP leaves of a real engine's speed."""
    with fake_gateway(base) as (port, token):
        rows = _measure(port, token, base.name)
    rows.append(_measure_streaming(base, say))
    for row in rows:
        say(f"{row.title}: {row.value} {row.unit}")
    return rows


@contextmanager
def fake_gateway(base: Base, *, delay: float = 0.0) -> Iterator[tuple[int, str]]:
    """The port and a key of a gateway process."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        with Registry.open(Home(Path(folder))) as registry:
            registry.add_base(base)
        key, token = new_key(tenant="bench", scopes=SCOPES, created_at=time.time(), created_by="bench")
        settings = ServeSettings(base=base.name, port=0, max_waiting=100_000, drain_delay=0, worker=False)
        alone = (cores[0],) if len(cores) > 1 else ()
        spec = FakeGateway(home=folder, base=base, key=key, settings=settings, delay=delay, cores=alone)
        command = [sys.executable, "-m", "tunery.gateway.bench.fake_gateway", msgspec.json.encode(spec).decode()]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            if alone:
                os.sched_setaffinity(0, cores[1:])
            try:
                for line in process.stderr or ():
                    if line.startswith("ready: "):
                        yield int(line.split()[1].rpartition(":")[2]), token
                        return
                raise Unavailable(f"the gateway ended with exit code {process.wait()}")
            finally:
                os.sched_setaffinity(0, cores)
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                process.kill()


def _measure(port: int, token: str, model: str) -> list[Row]:
    request = _request(token, model, max_tokens=TOKENS)
    streams = _request(token, model, max_tokens=STREAM_TOKENS, stream=True)
    with LoadGenerator(port, CONNECTIONS) as load:
        load.closed_loop(request, seconds=1.0)  # what is only done once
        latencies = load.open_loop(request, rate=RATE, seconds=SECONDS)
        answered = load.closed_loop(request, seconds=SECONDS)
        streamed = load.closed_loop(streams, seconds=SECONDS)
    cut = statistics.quantiles(latencies, n=100)
    return [
        Row(
            name="gateway_p50",
            title=f"gateway, median of a request at {RATE} a second",
            value=round(1000 * statistics.median(latencies), 2),
            unit="ms",
        ),
        Row(
            name="gateway_p99",
            title=f"gateway, 99th percentile at {RATE} a second",
            value=round(1000 * cut[98], 2),
            unit="ms",
        ),
        Row(
            name="gateway_requests",
            title=f"gateway, requests a second over {CONNECTIONS} connections, on one core",
            value=round(answered),
            unit="req/s",
        ),
        Row(
            name="gateway_tokens",
            title=f"gateway, tokens a second over {CONNECTIONS} streams, on one core",
            value=round(streamed * STREAM_TOKENS),
            unit="tok/s",
        ),
    ]


def _measure_streaming(base: Base, say: Callable[[str], None]) -> Row:
    """Tokens a second of a real engine whose streams go to CONNECTIONS clients on the same cores, over its speed alone;
    in turn, the median of ROUNDS."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder, server(base.path, home=Path(folder)) as port:
        config = EngineConfig(
            base_folder=base.path,
            base_name=base.name,
            base_digest=base.digest,
            cache_folder=str(Home(Path(folder)).packed),
            max_batch=CONNECTIONS,
        )
        with Driver(config) as driver, LoadGenerator(port, CONNECTIONS) as load:
            prompt = Renderer(Path(base.path)).encode(PROMPT)
            fields = {"prompt": PROMPT, "max_tokens": LONG_TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
            request = _http("/v1/completions", {"model": served_base(port), **fields})
            _run_alone(driver, prompt)
            load.batch(request)
            for _ in range(ROUNDS):
                alone = _run_alone(driver, prompt)
                streamed = load.batch(request)
                ratios.append(alone / streamed)
                tokens = CONNECTIONS * LONG_TOKENS
                say(f"{CONNECTIONS} streams: {tokens / alone:.0f} tok/s alone, {tokens / streamed:.0f} over HTTP")
    return Row(
        name="gateway_streaming",
        title=f"tokens a second of {CONNECTIONS} streams over HTTP, over the engine alone",
        value=round(statistics.median(ratios), 3),
        unit="×",
        detail={"ratios": ratios},
    )


def _run_alone(driver: Driver, prompt: Sequence[int]) -> float:
    """Seconds that an engine in this process takes for what the streams ask for."""
    begin = driver.now()
    for number in range(CONNECTIONS):
        driver.submit(str(number), tuple(prompt), LONG_TOKENS, None)
    driver.finish()
    return driver.now() - begin


def _request(token: str, model: str, **more: object) -> bytes:
    fields = {"model": model, "messages": [{"role": "user", "content": "What comes next?"}], **more}
    return _http("/v1/chat/completions", fields, f"authorization: Bearer {token}\r\n")


def _http(path: str, fields: dict[str, object], headers: str = "") -> bytes:
    body = json.dumps(fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"{headers}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
