"""The engine process: `python -m tunery.gateway.engine.process --socket PATH --config JSON [--listen PATH]`.

The main thread runs the engine's loop, another reads commands, a third sends heartbeats. The process ends when the
gateway's end of the socket closes, so an engine never outlives its gateway.
"""

from __future__ import annotations

import argparse
import queue
import signal
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from tunery.gateway.engine.config import LOAD_POLL, EngineConfig
from tunery.gateway.engine.ipc.connections import Connections
from tunery.gateway.engine.ipc.heartbeat import Heartbeat
from tunery.gateway.engine.messages import Command, Failed, Shutdown
from tunery.plugins.runtime.allocator import resident_bytes, trim_memory
from tunery.plugins.runtime.compute import prepare_compute
from tunery.plugins.runtime.log_format import notice, set_up_logging
from tunery.plugins.runtime.parent_watch import die_with_parent
from tunery.plugins.runtime.quick_exit import exit_quickly
from tunery.registry.errors import ArtifactRefused, TuneryError

if TYPE_CHECKING:
    from tunery.gateway.engine.core import EngineCore

__all__ = ["main"]

STATS_EVERY = 1.0
"""Seconds between reports of the state."""
REFUSED = 78
"""Exit code when the base is not one that the engine serves (EX_CONFIG of sysexits.h): starting
again changes nothing."""
TRIM_AFTER = 64 * 2**20
"""Bytes by which an idle engine may have grown before it returns unused memory to the system."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Connect to the gateway, load the base, and serve until the gateway stops the engine.

    Returns the exit code: 0 at a regular end, REFUSED when the engine does not serve this base, 1
    when it could not be loaded.
    """
    parser = argparse.ArgumentParser(prog="tunery-engine")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--listen", help="where further gateway processes may attach")
    options = parser.parse_args(arguments)
    die_with_parent()
    # A signal to the process group (Ctrl-C, a service manager) must not cut a drain short: the gateway ends the engine.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    config = msgspec.json.decode(options.config, type=EngineConfig)
    set_up_logging(config.log_format, config.log_level)
    prepare_compute(config.threads)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(options.socket)
        try:
            _serve(config, Connections(connection), options.listen)
        except TuneryError as error:
            notice(f"engine: {error.message}")
            return REFUSED if isinstance(error, ArtifactRefused) else 1
        except (BrokenPipeError, ConnectionResetError):
            return 0
    return 0


def _serve(config: EngineConfig, connections: Connections, listen: str | None) -> None:
    """Load and check the base, report it, and run the loop."""
    if listen is not None:
        connections.accept_on(listen)
    emit = connections.emit
    heartbeat = Heartbeat(emit)
    heartbeat.start()
    from tunery.gateway.engine.core import EngineCore
    from tunery.gateway.engine.self_check import load_reference, verify

    try:
        reference = load_reference(config)
        core = EngineCore(config, emit)
        core.warm_up()
        if reference is not None:
            verify(core, reference, config)
    except ArtifactRefused as error:
        emit(Failed("", error.code, error.message))
        raise
    connections.start()
    emit(core.ready())
    emit(core.stats())
    try:
        _loop(core, connections.commands, heartbeat)
    finally:
        core.close()


def _loop(core: EngineCore, commands: queue.SimpleQueue[Command | None], heartbeat: Heartbeat) -> None:
    """Carry out commands, step, report; sleep only when there is nothing to do."""
    reported, in_use = time.monotonic(), 0
    while True:
        wait = STATS_EVERY if core.idle else LOAD_POLL if core.blocked else 0.0
        received = _take_commands(commands, wait)
        heartbeat.begin()
        for command in received:
            if command is None or isinstance(command, Shutdown):
                return
            core.handle(command)
        core.step()
        heartbeat.end()
        if core.idle:
            in_use = _trim(in_use)
        if time.monotonic() - reported >= STATS_EVERY:
            reported = time.monotonic()
            core.report()


def _trim(in_use: int) -> int:
    """Return unused memory to the system once the process has grown TRIM_AFTER bytes beyond
    `in_use`; the new `in_use`."""
    if resident_bytes() <= in_use + TRIM_AFTER:
        return in_use
    trim_memory()
    return max(in_use, resident_bytes())


def _take_commands(commands: queue.SimpleQueue[Command | None], wait: float) -> list[Command | None]:
    """All queued commands, after waiting up to `wait` seconds for the first."""
    taken: list[Command | None] = []
    try:
        taken.append(commands.get(timeout=wait) if wait else commands.get_nowait())
        while True:
            taken.append(commands.get_nowait())
    except queue.Empty:
        return taken


if __name__ == "__main__":
    exit_quickly()
    raise SystemExit(main())
