"""What a gateway process is given to start with, and what it says to the process that started it."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import msgspec

from tunery.gateway.workers.snapshot import Snapshot
from tunery.registry import Base
from tunery.registry.configuration.settings import Settings
from tunery.registry.keys.api_key import ApiKey

__all__ = ["Ended", "Failed", "Message", "Ready", "WorkerSpec", "encode", "read_message", "read_spec"]

_LENGTH = struct.Struct("<I")


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One of several gateway processes: it is number `worker` of `workers`, and they meet in `folder`."""

    settings: Settings
    base: Base
    home: str
    own_key: ApiKey | None
    folder: str
    worker: int
    workers: int

    @property
    def engine_path(self) -> Path:
        """Where the engine lets it attach."""
        return Path(self.folder) / "engine.sock"


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """It answers; `lines` say where."""

    lines: tuple[str, ...]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It could not be started, or go on: the name of an error's class, and the rest of it."""

    kind: str
    message: str
    code: str


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """It ends, and these are its last metrics."""

    snapshot: Snapshot


Message = Ready | Failed | Ended


def encode(message: Message) -> bytes:
    """A message as it goes over the pipe."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


async def read_message(pipe: asyncio.StreamReader) -> Message | None:
    """The next message of a process; None when it has closed the pipe."""
    try:
        (length,) = _LENGTH.unpack(await pipe.readexactly(_LENGTH.size))
        message: Message = msgspec.msgpack.decode(await pipe.readexactly(length), type=Message)
    except (asyncio.IncompleteReadError, msgspec.DecodeError):
        return None
    return message


def read_spec(encoded: bytes) -> WorkerSpec:
    """What a process was given to start with."""
    return msgspec.msgpack.decode(encoded, type=WorkerSpec)
