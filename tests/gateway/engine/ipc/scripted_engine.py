"""A small real process that speaks the engine's protocol without a model, for the supervisor's tests.

Sends Ready and heartbeats, and answers Generate with the prompt's own tokens, one every 20 ms. Started with
context_length UNLUCKY it exits at once. A request with the id GARBLED makes it send bytes that are not a frame, one
with TALKATIVE its state first.
"""

from __future__ import annotations

import argparse
import socket
import time

import msgspec

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.ipc.connections import Connections
from tunery.gateway.engine.ipc.heartbeat import Heartbeat
from tunery.gateway.engine.messages import Generate, Load, Loaded, Ready, Shutdown, Stats, Token, Tokens

UNLUCKY = 13
GARBLED, TALKATIVE = "garbled", "talkative"
STATS = Stats(
    running=1,
    waiting=0,
    running_adapters={},
    waiting_adapters={},
    resident=[],
    resident_bytes=0,
    kv_used=0.0,
    steps=0,
    step_tokens=0,
    loads={},
    load_failures={},
    evictions={},
    hits={},
    load_seconds=[],
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket")
    parser.add_argument("--config")
    parser.add_argument("--listen")
    options = parser.parse_args()
    config = msgspec.json.decode(options.config, type=EngineConfig)
    if config.context_length == UNLUCKY:
        raise SystemExit(3)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(options.socket)
        connections = Connections(connection)
        emit = connections.emit
        if options.listen:
            connections.accept_on(options.listen)
        Heartbeat(emit).start()
        connections.start()
        emit(
            Ready(
                base=config.base_name,
                base_digest=config.base_digest,
                quant=config.quant,
                dtype=config.dtype,
                device="cpu",
                context_length=100,
                vocab_size=100,
                base_bytes=0,
                adapter_budget=0,
                max_batch=1,
                load_seconds=0.0,
            )
        )
        while (command := connections.commands.get()) is not None and not isinstance(command, Shutdown):
            if isinstance(command, Load):
                emit(Loaded(command.id, command.adapter.digest, 5))
            if isinstance(command, Generate):
                if command.id == GARBLED:
                    connection.sendall(b"\xff" * 64)
                    continue
                if command.id == TALKATIVE:
                    emit(STATS)
                for index, token in enumerate(command.prompt):
                    time.sleep(0.02)
                    last = index + 1 == len(command.prompt)
                    emit(Tokens([Token(command.id, token, -1.0, "length" if last else None)]))


if __name__ == "__main__":
    main()
