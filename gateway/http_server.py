"""The HTTP server: Granian in this process on a socket of ours, the application's start and shutdown around it, and new
certificates without a restart.

Granian's workers share the listening socket. When the certificate's files change, a new worker takes over the socket
and the old one ends with its last response, so no connection is refused and no stream is cut.

`python -m tunery.gateway.http_server CERT KEY [CLIENT_CA]` serves nobody with these files for a moment, and exits with
0 when that works.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import AsyncWorker, Server

from tunery.gateway.sockets import BACKLOG, listen
from tunery.gateway.tls import Stamp, TlsFiles, check_tls, stamp_of, tls_files
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from litestar.types import ASGIApp

__all__ = ["HttpServer"]

log = logging.getLogger("tunery.gateway")

STOP_SECONDS = 5.0
"""How long Granian may take to close connections without requests before they are cut."""
MAX_HEAD = 64 * 1024
"""Bytes of a request's head; each connection may hold as many."""
TLS_POLL = 2.0
"""Seconds between looks at the certificate's files."""


class HttpServer:
    """Serves an application on the settings' address; raises InvalidInput for TLS files that cannot be served."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings
        self._tls = tls_files(settings)
        self._stopping = asyncio.Event()
        self.listening = asyncio.Event()
        self.port = settings.port

    @property
    def url(self) -> str:
        """Where it answers."""
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}"

    async def run(self) -> None:
        """Start the application up, serve until `stop`, and shut it down once no request is left."""
        if self._tls is not None:
            await asyncio.to_thread(check_tls, self._tls)
        async with _lifespan(self._app):
            settings = self._settings
            shared = settings.workers > 1
            with listen(settings.host, settings.port, write_seconds=settings.write_seconds, shared=shared) as listener:
                self.port = listener.getsockname()[1]
                await self._serve(listener)

    def stop(self) -> None:
        """Accept no more connections, and end when those with requests have."""
        self._stopping.set()

    async def _serve(self, listener: socket.socket) -> None:
        server = _granian(self._app, self._settings, listener, tls=self._tls)
        serving = asyncio.create_task(server.serve(), name="http-server")
        stopping = asyncio.create_task(self._stopping.wait())
        watching = asyncio.create_task(self._watch_tls(server), name="certificates")
        self.listening.set()
        try:
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            listener.close()
            server.stop()  # type: ignore[no-untyped-call]
            await asyncio.wait((serving,), timeout=STOP_SECONDS)
            if serving.done() and not self._stopping.is_set():
                raise serving.exception() or Unavailable("it ended by itself")
        finally:
            for task in (serving, stopping, watching):
                task.cancel()
            await asyncio.gather(serving, stopping, watching, return_exceptions=True)

    async def _watch_tls(self, server: _Server) -> None:
        """Serve with the certificate's new files when they have changed."""
        if (files := self._tls) is None:
            return
        served = seen = stamp_of(files)
        while True:
            await asyncio.sleep(TLS_POLL)
            before, seen = seen, stamp_of(files)
            # Whoever replaces several files is given time to replace them all.
            if seen is not None and seen == before and seen != served:
                await self._reload(server, files, seen)
                served = seen

    async def _reload(self, server: _Server, files: TlsFiles, stamp: Stamp) -> None:
        try:
            await asyncio.to_thread(check_tls, files)
            if stamp_of(files) == stamp:
                server.serve_with(files)
                log.info("the new certificate is served")
        except InvalidInput as error:
            log.warning("the new certificate is not served, the old one is: %s", error.message)
        except Exception:
            log.exception("the new certificate could not be served, the old one is")


class _Server(Server):
    """Granian, whose workers get duplicates of one listening socket."""

    listener: socket.socket
    retired: tuple[AsyncWorker, ...] = ()

    def _init_shared_socket(self) -> None:
        """There is a socket already."""

    def _spawn_worker(self, *arguments: Any, **named: Any) -> AsyncWorker:
        # Its arguments (a descriptor, whether it is a Unix socket's, the backlog) are missing in Granian's types.
        holder: Any = SocketHolder
        self.__dict__["_shd"] = holder(os.dup(self.listener.fileno()), False, BACKLOG)
        return super()._spawn_worker(*arguments, **named)

    def use(self, files: TlsFiles) -> None:
        """Let workers that start from now on serve with these files."""
        self.build_ssl_context(
            files.cert, files.key, None, SSLProtocols.tls12, files.client_ca, [], files.client_ca is not None
        )

    def serve_with(self, files: TlsFiles) -> None:
        """Start a worker with these files; the one before ends with its last response."""
        self.use(files)
        old = self.wrks.pop()
        new = self._spawn_worker(idx=old.idx, target=self._spawn_asgi_worker, callback_loader=self.target)
        new.start()
        self.wrks.append(new)
        old.terminate()
        self.retired = (*(worker for worker in self.retired if worker.is_alive()), old)


def _granian(app: ASGIApp, settings: ServeSettings, listener: socket.socket, *, tls: TlsFiles | None = None) -> _Server:
    """Granian, with the settings' limits; its messages go where all others do."""
    server = _Server(
        app,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGINL,  # the application's lifespan is longer than a worker's
        websockets=False,
        backlog=BACKLOG,
        backpressure=settings.max_connections,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=1000 * settings.read_seconds, max_buffer_size=MAX_HEAD),
        log_level=LogLevels.error,
        log_dictconfig={"handlers": {}, "formatters": {}, "loggers": {"_granian": {"propagate": True}}},
    )
    server.listener = listener
    if tls is not None:
        server.use(tls)
    return server


@contextlib.asynccontextmanager
async def _lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """Have an ASGI application start up, and shut it down at the end; raise what either raises."""
    requests: asyncio.Queue[Any] = asyncio.Queue()
    answers: asyncio.Queue[Any] = asyncio.Queue()
    scope: Any = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.3"}, "state": {}}
    running: asyncio.Future[None] = asyncio.ensure_future(app(scope, requests.get, answers.put))

    async def ask(what: str) -> None:
        requests.put_nowait({"type": f"lifespan.{what}"})
        answering = asyncio.create_task(answers.get())
        await asyncio.wait((running, answering), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() or not answering.result()["type"].endswith(".complete"):
            answering.cancel()
            await running
            raise Unavailable(f"the application's {what} failed")

    await ask("startup")
    try:
        yield
    finally:
        await ask("shutdown")
        await running


async def _try(tls: TlsFiles) -> None:
    """Start with the files, and stop."""

    async def nothing(*_: object) -> None:
        """Answer nobody."""

    with listen("127.0.0.1", 0, write_seconds=1) as listener:
        server = _granian(nothing, ServeSettings(), listener, tls=tls)
        serving = asyncio.create_task(server.serve())
        await asyncio.sleep(0)
        server.stop()  # type: ignore[no-untyped-call]
        await serving


if __name__ == "__main__":
    asyncio.run(_try(TlsFiles(*map(Path, sys.argv[1:]))))
