"""The engine's connections: the process that started it, and the gateway processes that have attached to it.

Each gets the events of its own requests, and all get the engine's state. One that does not read never holds up the
engine: its events are kept up to a limit, and then it is disconnected.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from pathlib import Path

from tunery.gateway.engine.ipc.wire import BufferedWriter, CommandReader, EventWriter
from tunery.gateway.engine.messages import Alive, Cancel, Command, Event, Ready, Shutdown, Stats, Token, Tokens

__all__ = ["Connections"]

BACKLOG = 64
"""Gateways that may wait to be accepted."""
Writer = EventWriter | BufferedWriter


class Connections:
    """Commands of all gateways come out of `commands`, None once the one that started the engine is gone."""

    def __init__(self, starter: socket.socket) -> None:
        self.commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._starter = EventWriter(starter)
        self._reader = CommandReader(starter)
        self._attached: list[BufferedWriter] = []
        self._owners: dict[str, Writer] = {}
        """Who asked, by the id of the request."""
        self._ready: Ready | None = None
        self._stats: Stats | None = None
        self._lock = threading.Lock()
        self._shared = False

    def start(self) -> None:
        """Read the starter's commands from now on, on a thread."""
        threading.Thread(target=self._read_starter, name="commands", daemon=True).start()

    def accept_on(self, path: str) -> None:
        """Let gateways attach at a Unix socket, for as long as the process lives."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        Path(path).unlink(missing_ok=True)  # an engine that was killed leaves it
        listener.bind(path)
        listener.listen(BACKLOG)
        self._shared = True
        threading.Thread(target=self._accept, args=(listener,), name="gateways", daemon=True).start()

    def emit(self, event: Event) -> None:
        """Send an event to whom it concerns; raise OSError when the starter is gone."""
        if not self._shared:
            self._starter.write(event)
        elif isinstance(event, Tokens):
            self._emit_tokens(event.tokens)
        elif isinstance(event, Ready | Stats | Alive):
            self._emit_to_all(event)
        else:
            with self._lock:
                owner = self._owners.pop(event.id, None)
            if owner is not None:
                self._write(owner, event)
            elif not event.id:
                self._starter.write(event)

    def _emit_tokens(self, tokens: list[Token]) -> None:
        by_owner: dict[Writer, list[Token]] = {}
        with self._lock:
            for token in tokens:
                owner = self._owners.get(token.id) if token.finish is None else self._owners.pop(token.id, None)
                if owner is not None:
                    by_owner.setdefault(owner, []).append(token)
        for owner, its in by_owner.items():
            self._write(owner, Tokens(its))

    def _emit_to_all(self, event: Ready | Stats | Alive) -> None:
        with self._lock:
            if isinstance(event, Ready):
                self._ready = event
            elif isinstance(event, Stats):
                self._stats = event
            attached = list(self._attached)
        for writer in attached:
            self._write(writer, event)
        self._starter.write(event)

    def _write(self, writer: Writer, event: Event) -> None:
        """Send an event; a gateway that attached and cannot take it is disconnected, which cancels its requests."""
        if isinstance(writer, EventWriter):
            writer.write(event)
            return
        try:
            writer.write(event)
        except OSError:
            writer.close()

    def _read_starter(self) -> None:
        try:
            while (command := self._reader.read()) is not None:
                self._take(command, self._starter)
        finally:
            self.commands.put(None)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._serve, args=(connection,), name="gateway", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Take an attached gateway's commands until it is gone, then cancel what it had asked for."""
        writer, reader = BufferedWriter(connection), CommandReader(connection)
        with self._lock:
            known = [event for event in (self._ready, self._stats) if event is not None]
            self._attached.append(writer)
        try:
            for event in known:
                self._write(writer, event)
            while (command := reader.read()) is not None:
                if not isinstance(command, Shutdown):  # only its starter ends an engine
                    self._take(command, writer)
        finally:
            with self._lock:
                self._attached.remove(writer)
                left = [request for request, owner in self._owners.items() if owner is writer]
                for request in left:
                    del self._owners[request]
            for request in left:
                self.commands.put(Cancel(request))
            with contextlib.suppress(OSError):
                connection.close()

    def _take(self, command: Command, writer: Writer) -> None:
        if self._shared and not isinstance(command, Shutdown):
            with self._lock:
                if isinstance(command, Cancel):
                    self._owners.pop(command.id, None)
                else:
                    self._owners[command.id] = writer
        self.commands.put(command)
