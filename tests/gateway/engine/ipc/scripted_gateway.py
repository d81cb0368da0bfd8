"""A process that supervises a scripted engine, prints the engine's process id and waits to be
killed; for the supervisor's tests."""

from __future__ import annotations

import asyncio
import sys

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.ipc.supervisor import SupervisedEngine


async def main() -> None:
    engine = SupervisedEngine(
        EngineConfig(base_folder="x", base_name="tiny", base_digest="0"),
        command=(sys.executable, "-m", "tests.gateway.engine.ipc.scripted_engine"),
    )
    await engine.start()
    await engine.wait_ready()
    sys.stdout.write(f"{engine.pid}\n")
    sys.stdout.flush()
    await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main())
