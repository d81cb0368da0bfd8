"""Frames on the socket between gateway and engine: a 4-byte little-endian length, then one msgpack message.

The engine's side blocks (it has threads), the gateway's is asyncio. The end of the stream is None, never an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading

import msgspec

from tunery.gateway.engine.messages import Command, Event
from tunery.registry.errors import Unavailable

__all__ = ["MAX_FRAME", "BufferedWriter", "CommandReader", "EventWriter", "read_event", "write_command"]

MAX_FRAME = 64 * 2**20
"""Bytes; a larger frame means that the two sides do not speak the same protocol."""

MAX_BACKLOG = 16 * 2**20
"""Bytes of events that may wait for one gateway process to read them."""

_LENGTH = struct.Struct("<I")


class CommandReader:
    """Reads commands on the engine's side; blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._decoder = msgspec.msgpack.Decoder(Command)

    def read(self) -> Command | None:
        """The next command; None when the gateway is gone."""
        header = self._read_exactly(_LENGTH.size)
        if header is None:
            return None
        body = self._read_exactly(_check_length(_LENGTH.unpack(header)[0]))
        return None if body is None else self._decoder.decode(body)

    def _read_exactly(self, count: int) -> bytes | None:
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
    """Writes events on the engine's side, from any thread; blocks. Raises OSError when the gateway is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def write(self, event: Event) -> None:
        """Send one event."""
        frame = _frame(msgspec.msgpack.encode(event))
        with self._lock:
            self._connection.sendall(frame)


class BufferedWriter:
    """Writes events on the engine's side, from any thread, without ever blocking: what the gateway has not read yet is
    kept and sent with later events. Raises OSError when that is too much, or the gateway is gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._backlog = bytearray()
        self._lock = threading.Lock()

    def write(self, event: Event) -> None:
        """Send one event, or keep it."""
        frame = _frame(msgspec.msgpack.encode(event))
        with self._lock:
            self._backlog += frame
            with contextlib.suppress(BlockingIOError):
                while self._backlog:
                    del self._backlog[: self._connection.send(self._backlog, socket.MSG_DONTWAIT)]
            if len(self._backlog) > MAX_BACKLOG:
                raise ConnectionAbortedError(f"{len(self._backlog):,} bytes of events wait to be read")

    def close(self) -> None:
        """End the connection, which its reader sees as its end."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


def write_command(writer: asyncio.StreamWriter, command: Command) -> None:
    """Buffer one command for the engine; the event loop sends it.

    Raises Unavailable when it is too large for a frame.
    """
    writer.write(_frame(msgspec.msgpack.encode(command)))


async def read_event(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[Event]) -> Event | None:
    """The engine's next event; None when the engine is gone.

    Raises Unavailable for a frame that is too large, msgspec.DecodeError for one that is not an event.
    """
    try:
        header = await reader.readexactly(_LENGTH.size)
        return decoder.decode(await reader.readexactly(_check_length(_LENGTH.unpack(header)[0])))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _frame(body: bytes) -> bytes:
    return _LENGTH.pack(_check_length(len(body))) + body


def _check_length(length: int) -> int:
    if length > MAX_FRAME:
        raise Unavailable(f"a frame of {length:,} bytes on the engine's socket; the limit is {MAX_FRAME:,}")
    return length
