"""One of several gateway processes: `python -m tunery.gateway.workers.worker`, its WorkerSpec on stdin.

It serves until SIGTERM and then drains. Stdout carries its messages to the process that started it, and it ends with
that process.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tunery.gateway.engine.ipc.attached_engine import AttachedEngine
from tunery.gateway.gateway_process import engine_timeouts, run_gateway
from tunery.gateway.workers.messages import Ended, Failed, Message, Ready, WorkerSpec, encode, read_spec
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.discovery import load_plugins
from tunery.plugins.runtime.allocator import bound_allocator
from tunery.plugins.runtime.log_format import notice, set_up_logging
from tunery.plugins.runtime.parent_watch import die_with_parent
from tunery.plugins.runtime.quick_exit import exit_quickly
from tunery.registry.errors import TuneryError
from tunery.registry.home import Home

__all__ = ["main"]


def main() -> None:
    """Serve; exit with 1 after an error, which a message has named."""
    die_with_parent()
    pipe = os.dup(1)
    os.dup2(2, 1)  # whatever else is printed is log
    spec = read_spec(sys.stdin.buffer.read())
    set_up_logging(spec.settings.serve.log_format, spec.settings.serve.log_level)
    bound_allocator()
    try:
        asyncio.run(_serve(spec, pipe))
    except TuneryError as error:
        _send(pipe, Failed(type(error).__name__, error.message, error.code))
        sys.exit(1)


async def _serve(spec: WorkerSpec, pipe: int) -> None:
    from tunery.gateway.workers.peers import WorkerPeers

    lines: list[str] = []

    def say(text: str) -> None:
        if text.startswith(("ready: ", "admin API: ")):
            lines.append(text)
            if text.startswith("ready: "):
                _send(pipe, Ready(tuple(lines)))
        else:
            notice(text)

    peers = WorkerPeers(spec)
    try:
        await run_gateway(
            AttachedEngine(spec.engine_path, timeouts=engine_timeouts(spec.settings.serve)),
            spec.settings,
            spec.base,
            Renderer(Path(spec.base.path)),
            home=Home(Path(spec.home)),
            plugins=load_plugins(),
            say=say,
            own_key=spec.own_key,
            peers=peers,
        )
    finally:
        _send(pipe, Ended(await peers.snapshot()))


def _send(pipe: int, message: Message) -> None:
    left = memoryview(encode(message))
    try:
        while left:
            left = left[os.write(pipe, left) :]
    except BrokenPipeError:
        return  # the parent is gone, and so will be this process


if __name__ == "__main__":
    exit_quickly()
    main()
