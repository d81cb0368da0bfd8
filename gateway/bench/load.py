"""A load generator that takes little time itself: one HTTP request over and over, on connections that are kept.

An open loop looks at its sockets without pause, so it needs a core of its own, and what it measures is the server's.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from tunery.registry.errors import Unavailable

__all__ = ["LoadGenerator"]

_HEAD_END, _CHUNKS_END = b"\r\n\r\n", b"\r\n0\r\n\r\n"
_LENGTH = b"content-length: "
READ_BYTES = 2**18
PATIENCE = 60.0
"""Seconds without a byte after which the server counts as hung."""


class _Connection:
    """One connection, with what has come of the answer to its latest request, which was due at `due`."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._answer = bytearray()

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self._answer.clear()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Read what is there; whether the answer is complete. Raises Unavailable for one that is not a success."""
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise Unavailable("the gateway closed a connection")
        answer = self._answer
        answer += data
        head = answer.find(_HEAD_END)
        if head < 0:
            return False
        at = answer.find(_LENGTH, 0, head)
        if at < 0:
            complete = answer.endswith(_CHUNKS_END)
        else:
            length = int(answer[at + len(_LENGTH) : answer.index(b"\r", at)])
            complete = len(answer) >= head + len(_HEAD_END) + length
        if complete and not answer.startswith(b"HTTP/1.1 200 "):
            raise Unavailable(f"the gateway answered {answer[:300].decode(errors='replace')}")
        return complete


class LoadGenerator:
    """Connections to the server at a port of this machine; a context manager that closes them.

    Its methods raise Unavailable for an answer that is not 200, and for none.
    """

    def __init__(self, port: int, connections: int) -> None:
        self._connections = [_Connection(port) for _ in range(connections)]
        self._poll = select.poll()
        self._latest = time.perf_counter()
        self._by_descriptor = {each.socket.fileno(): each for each in self._connections}
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, select.POLLIN)

    def __enter__(self) -> LoadGenerator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._connections:
            each.socket.close()

    def open_loop(self, request: bytes, *, rate: float, seconds: float) -> list[float]:
        """Seconds from when each request was due to its last byte: they are sent at their times, whatever became of
        those before, as long as a connection is free."""
        free, latencies = deque(self._connections), list[float]()
        begin, count, sent = time.perf_counter(), int(rate * seconds), 0

        def done(connection: _Connection, now: float) -> None:
            latencies.append(now - connection.due)
            free.append(connection)

        while len(latencies) < count:
            while sent < count and free and (due := begin + sent / rate) <= time.perf_counter():
                free.popleft().send(request, due)
                sent += 1
            self._collect(done)
        return latencies

    def closed_loop(self, request: bytes, *, seconds: float) -> float:
        """Answers a second while every connection always has a request; those at the end are waited for, not counted."""
        count, running, end = 0, len(self._connections), time.perf_counter() + seconds

        def done(connection: _Connection, now: float) -> None:
            nonlocal count, running
            if now < end:
                count += 1
                connection.send(request, now)
            else:
                running -= 1

        for connection in self._connections:
            connection.send(request, 0.0)
        while running:
            self._collect(done, wait=PATIENCE)
        return count / seconds

    def batch(self, request: bytes) -> float:
        """Seconds until every connection has the answer to one request, all sent at once."""
        begin, running = time.perf_counter(), len(self._connections)

        def done(connection: _Connection, now: float) -> None:
            nonlocal running
            running -= 1

        for connection in self._connections:
            connection.send(request, begin)
        while running:
            self._collect(done, wait=PATIENCE)
        return time.perf_counter() - begin

    def _collect(self, done: Callable[[_Connection, float], None], *, wait: float = 0.0) -> None:
        """Read what comes within `wait` seconds, and call `done` with each connection whose answer is complete, and the
        time."""
        ready = self._poll.poll(1000 * wait)
        now = time.perf_counter()
        if ready:
            self._latest = now
        elif now - self._latest > PATIENCE:
            raise Unavailable(f"the gateway has not sent a byte for {PATIENCE:.0f} s")
        for descriptor, _ in ready:
            connection = self._by_descriptor[descriptor]
            if connection.receive():
                done(connection, time.perf_counter())
