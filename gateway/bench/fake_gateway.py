"""A gateway in front of the fake engine, as a process: `python -m tunery.gateway.bench.fake_gateway SPEC`, JSON.

What it takes is the gateway's own work, since the engine's answers cost next to nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.fake import FakeEngine
from tunery.gateway.gateway_process import serve, settle_memory
from tunery.gateway.metrics.recorder import Metrics
from tunery.gateway.resolver import Resolver
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry import Base
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.home import Home
from tunery.registry.keys.api_key import ApiKey
from tunery.registry.registry import Registry

__all__ = ["FakeGateway", "main"]


class FakeGateway(msgspec.Struct, frozen=True, kw_only=True):
    """What is served: the tokenizer of `base`, and a token every `delay` seconds. It runs on `cores`, if any are named."""

    home: str
    base: Base
    key: ApiKey
    settings: ServeSettings
    delay: float = 0.0
    cores: tuple[int, ...] = ()


async def _serve(spec: FakeGateway) -> None:
    renderer = Renderer(Path(spec.base.path))
    words = renderer.encode(" and then".join(str(number) for number in range(200)))
    engine = FakeEngine(words, delay=spec.delay, context_length=8192, base=spec.base.name, base_digest=spec.base.digest)
    registry = Registry.open(Home(Path(spec.home)))
    gateway = Gateway(
        spec.settings, registry, engine, renderer, Resolver(registry, spec.base), Metrics(), own_key=spec.key
    )
    await serve(gateway, say=lambda text: print(text, file=sys.stderr, flush=True), on_ready=settle_memory)  # noqa: T201


def main() -> None:
    """Serve until a signal."""
    spec = msgspec.json.decode(sys.argv[1], type=FakeGateway)
    if spec.cores:
        os.sched_setaffinity(0, spec.cores)
    asyncio.run(_serve(spec))


if __name__ == "__main__":
    main()
