"""A gateway with a fake engine as a process: `python -m tests.gateway.fake_server HOME TOKENIZER SETTINGS`, settings as
JSON. It says `ready: …` on stderr, as `tunery serve` does, and serves until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.fake import FakeEngine
from tunery.gateway.gateway_process import serve, settle_memory
from tunery.gateway.metrics.recorder import Metrics
from tunery.gateway.resolver import Resolver
from tunery.gateway.tracing.setup import open_tracer
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.runtime.log_format import notice, set_up_logging
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.home import Home
from tunery.registry.registry import Registry

REPLY = "Hello, world. " * 20


@dataclass
class FakeServer:
    """A running process."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def stop(self, number: int) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as probes:
        listening = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in listening:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in listening]


@contextlib.contextmanager
def fake_server(
    home: Home, tokenizer: Path, settings: ServeSettings, *, log: Path, **environment: str
) -> Iterator[FakeServer]:
    """Start the process, wait until it says that it is ready, and kill it in the end."""
    command = [sys.executable, "-m", "tests.gateway.fake_server", str(home.root), str(tokenizer)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, msgspec.json.encode(settings).decode()],
            stdout=output,
            stderr=output,
            env=os.environ | environment,
        )
    try:
        deadline = time.monotonic() + 120
        while "ready: " not in (text := log.read_text()):
            assert process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.02)
        yield FakeServer(process, text.rpartition("ready: ")[2].split()[0], log)
    finally:
        process.kill()
        process.wait()


async def _main(root: str, tokenizer: str, encoded: str) -> None:
    settings = msgspec.json.decode(encoded, type=ServeSettings)
    set_up_logging(settings.log_format, settings.log_level)
    registry, renderer, metrics = Registry.open(Home(Path(root))), Renderer(Path(tokenizer)), Metrics()
    (base,) = registry.bases()
    engine = FakeEngine(
        renderer.encode(REPLY),
        delay=float(os.environ.get("FAKE_DELAY", "0.04")),
        base=base.name,
        base_digest=base.digest,
    )
    tracer = open_tracer(settings, metrics)
    gateway = Gateway(settings, registry, engine, renderer, Resolver(registry, base), metrics, tracer=tracer)
    await serve(gateway, say=notice, on_ready=settle_memory)
    if tracer is not None:
        await tracer.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
