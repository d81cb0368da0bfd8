"""Owns frames on the socket between gateway and engine: a 4-byte little-endian length and one msgpack message.

The engine's side is blocking (it has threads), the gateway's is asyncio. An end of stream is None, never an exception.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading

import msgspec

from tunery.gateway.engine.messages import Command, Event
from tunery.registry.errors import Unavailable

__all__ = ["MAX_FRAME", "CommandReader", "EventWriter", "read_event", "write_command"]

MAX_FRAME = 64 * 2**20
"""Bytes; larger frames mean that the two sides do not speak the same language."""

_LENGTH = struct.Struct("<I")


class CommandReader:
    """The engine's blocking reader of commands."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._decoder = msgspec.msgpack.Decoder(Command)

    def read(self) -> Command | None:
        """The next command; None when the gateway is gone."""
        header = self._exactly(_LENGTH.size)
        if header is None:
            return None
        body = self._exactly(_checked(_LENGTH.unpack(header)[0]))
        return None if body is None else self._decoder.decode(body)

    def _exactly(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._connection.recv(count - len(parts))
            except OSError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)


class EventWriter:
    """The engine's blocking writer of events, for several threads; raises OSError when the gateway is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def write(self, event: Event) -> None:
        """Send one event."""
        frame = _framed(msgspec.msgpack.encode(event))
        with self._lock:
            self._connection.sendall(frame)


def write_command(writer: asyncio.StreamWriter, command: Command) -> None:
    """Queue one command for the engine; it leaves with the event loop's next turn."""
    writer.write(_framed(msgspec.msgpack.encode(command)))


async def read_event(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[Event]) -> Event | None:
    """The engine's next event; None when the engine is gone.

    Raises Unavailable when what came is no frame, msgspec.DecodeError when the frame holds no event.
    """
    try:
        header = await reader.readexactly(_LENGTH.size)
        return decoder.decode(await reader.readexactly(_checked(_LENGTH.unpack(header)[0])))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _framed(body: bytes) -> bytes:
    return _LENGTH.pack(_checked(len(body))) + body


def _checked(length: int) -> int:
    if length > MAX_FRAME:
        raise Unavailable(f"a frame of {length:,} bytes on the engine's socket; the most is {MAX_FRAME:,}")
    return length
