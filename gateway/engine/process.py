"""Owns the engine's process: `python -m tunery.gateway.engine.process --socket PATH --config JSON`.

The main thread steps the engine; another reads commands. It ends when the gateway's end of the socket closes, so an engine
never outlives its gateway.
"""

from __future__ import annotations

import argparse
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.messages import Command, Shutdown
from tunery.gateway.engine.wire import CommandReader, EventWriter
from tunery.plugins.compute import prepare_compute
from tunery.plugins.parent import die_with_parent
from tunery.registry.errors import TuneryError

if TYPE_CHECKING:
    from tunery.gateway.engine.core import EngineCore

__all__ = ["main"]

STATS_EVERY = 1.0
LOAD_POLL = 0.002


def main(arguments: Sequence[str] | None = None) -> int:
    """Connect to the gateway, load the base, serve until told to stop; 0 on a quiet end, 1 when the base cannot be loaded."""
    parser = argparse.ArgumentParser(prog="tunery-engine")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--config", required=True)
    options = parser.parse_args(arguments)
    die_with_parent()
    # A signal to the whole group (Ctrl-C, a service manager) must not cut a drain short: the gateway decides when the engine ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    config = msgspec.json.decode(options.config, type=EngineConfig)
    prepare_compute(config.threads)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(options.socket)
        try:
            _serve(config, connection)
        except TuneryError as error:
            sys.stderr.write(f"engine: {error.message}\n")
            return 1
        except (BrokenPipeError, ConnectionResetError):
            return 0
    return 0


def _serve(config: EngineConfig, connection: socket.socket) -> None:
    """Load the base, say so, and loop."""
    from tunery.gateway.engine.core import EngineCore

    writer = EventWriter(connection)
    core = EngineCore(config, writer.write)
    core.warm_up()
    commands = _listen(CommandReader(connection))
    writer.write(core.ready())
    writer.write(core.stats())
    try:
        _loop(core, commands)
    finally:
        core.close()


def _loop(core: EngineCore, commands: queue.SimpleQueue[Command | None]) -> None:
    """Take what commands there are, step, report; sleep only when there is nothing to do."""
    reported = time.monotonic()
    while True:
        wait = STATS_EVERY if core.idle else LOAD_POLL if core.blocked else 0.0
        for command in _taken(commands, wait):
            if command is None or isinstance(command, Shutdown):
                return
            core.handle(command)
        core.step()
        if time.monotonic() - reported >= STATS_EVERY:
            reported = time.monotonic()
            core.report()


def _taken(commands: queue.SimpleQueue[Command | None], wait: float) -> list[Command | None]:
    """All commands that are there, after waiting up to `wait` seconds for the first."""
    taken: list[Command | None] = []
    try:
        taken.append(commands.get(timeout=wait) if wait else commands.get_nowait())
        while True:
            taken.append(commands.get_nowait())
    except queue.Empty:
        return taken


def _listen(reader: CommandReader) -> queue.SimpleQueue[Command | None]:
    """Read commands on a thread; None ends the stream."""
    commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()

    def listen() -> None:
        command: Command | None = None
        try:
            while (command := reader.read()) is not None:
                commands.put(command)
        finally:
            commands.put(None)

    threading.Thread(target=listen, name="commands", daemon=True).start()
    return commands


if __name__ == "__main__":
    raise SystemExit(main())
