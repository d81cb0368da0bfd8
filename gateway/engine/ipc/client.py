"""The gateway's end of the connection to a running engine: sends requests and sorts the answers by request."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Callable

import msgspec

from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.ipc.wire import read_event, write_command
from tunery.gateway.engine.messages import (
    Alive,
    Cancel,
    Command,
    Embed,
    Embedded,
    Event,
    Failed,
    Generate,
    Load,
    Loaded,
    Ready,
    Shutdown,
    Stats,
    Token,
    Tokens,
    Unload,
    Unloaded,
)
from tunery.registry.errors import ArtifactRefused, InvalidInput, Overloaded, StorageFailed, TuneryError, Unavailable

__all__ = ["MAX_QUEUED_TOKENS", "RESTARTED", "EngineClient", "engine_gone"]

log = logging.getLogger("tunery.engine")

Answer = Token | Embedded | Loaded | Unloaded | TuneryError

_ERRORS: dict[str, type[TuneryError]] = {
    "invalid_input": InvalidInput,
    "context_length_exceeded": InvalidInput,
    "invalid_constraint": InvalidInput,
    "unsupported_composition": InvalidInput,
    "overloaded": Overloaded,
    "storage_failed": StorageFailed,
    "artifact_damaged": StorageFailed,
    "base_nonfinite": StorageFailed,
    "nonfinite_output": ArtifactRefused,
    "artifact_incomplete": ArtifactRefused,
    "artifact_nonfinite": ArtifactRefused,
    "artifact_truncated": ArtifactRefused,
    "artifact_refused": ArtifactRefused,
    "artifact_unsafe": ArtifactRefused,
    "unsupported_adapter": ArtifactRefused,
    "wrong_base": ArtifactRefused,
}
"""The class of an error by its code; other codes are Unavailable."""

RESTARTED = "engine_restarted"
"""The error code of requests that an engine was working on when it ended."""

MAX_QUEUED_TOKENS = 1024
"""Tokens of one request that may wait to be read; more means that the client does not read its answer."""


def engine_gone() -> Unavailable:
    """The error of requests that were running when the engine died."""
    return Unavailable(
        "the engine stopped while it worked on this request and is being restarted; send it again",
        code=RESTARTED,
    )


class EngineClient:
    """The connection to one engine. After `listen` returns, every call raises Unavailable (`engine_restarted`)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._waiting: dict[str, asyncio.Queue[Answer]] = {}
        self._alive = True
        self.refusal: Failed | None = None
        """Why the engine does not serve its base, if it said so."""

    async def listen(
        self,
        on_ready: Callable[[Ready], None],
        on_stats: Callable[[Stats], None],
        on_any: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """Deliver events until the engine is gone, then fail the requests that still wait.

        `on_any` gets every event first.
        """
        decoder = msgspec.msgpack.Decoder(Event)
        try:
            while (event := await read_event(self._reader, decoder)) is not None:
                on_any(event)
                if isinstance(event, Ready):
                    on_ready(event)
                elif isinstance(event, Stats):
                    on_stats(event)
                elif not isinstance(event, Alive):
                    self._deliver(event)
                    # Frames that are already buffered are read without suspending: let their requests run.
                    await asyncio.sleep(0)
        except (msgspec.DecodeError, Unavailable) as error:
            # What follows cannot be trusted either: treat the engine as dead.
            log.error("the engine sent something that is not an event (%s); its connection is closed", error)
        finally:
            self._alive = False
            for queue in self._waiting.values():
                queue.put_nowait(engine_gone())
            self._writer.close()

    async def generate(self, request: Generate) -> AsyncGenerator[Token, None]:
        """See Engine.generate."""
        queue = self._ask(request)
        ended = False
        try:
            while not ended:
                answer = await queue.get()
                if not isinstance(answer, Token):
                    ended = True
                    raise answer if isinstance(answer, TuneryError) else engine_gone()
                ended = answer.finish is not None
                yield answer
        finally:
            self._waiting.pop(request.id, None)
            if not ended:
                self._send(Cancel(request.id))

    async def embed(self, request: Embed) -> Embedded:
        """See Engine.embed."""
        try:
            answer = await self._answer(request)
        except asyncio.CancelledError:
            self._send(Cancel(request.id))
            raise
        if not isinstance(answer, Embedded):
            raise engine_gone()
        return answer

    async def load(self, adapter: AdapterSource, *, pin: bool = False) -> Loaded:
        """See Engine.load."""
        answer = await self._answer(Load(uuid.uuid4().hex, adapter, pin))
        if not isinstance(answer, Loaded):
            raise engine_gone()
        return answer

    async def unload(self, digest: str) -> Unloaded:
        """See Engine.unload."""
        answer = await self._answer(Unload(uuid.uuid4().hex, digest))
        if not isinstance(answer, Unloaded):
            raise engine_gone()
        return answer

    def shut_down(self) -> None:
        """Ask the engine to exit."""
        self._send(Shutdown())

    async def _answer(self, command: Embed | Load | Unload) -> Answer:
        queue = self._ask(command)
        try:
            answer = await queue.get()
        finally:
            self._waiting.pop(command.id, None)
        if isinstance(answer, TuneryError):
            raise answer
        return answer

    def _ask(self, command: Generate | Embed | Load | Unload) -> asyncio.Queue[Answer]:
        if not self._alive:
            raise engine_gone()
        # Send first: a command that cannot be written leaves no queue behind.
        self._send(command)
        queue: asyncio.Queue[Answer] = asyncio.Queue()
        self._waiting[command.id] = queue
        return queue

    def _send(self, command: Command) -> None:
        if self._alive and not self._writer.is_closing():
            write_command(self._writer, command)

    def _deliver(self, event: Tokens | Embedded | Failed | Loaded | Unloaded) -> None:
        """Hand an event to the request that waits for it; drop it if none does any more."""
        if isinstance(event, Tokens):
            for token in event.tokens:
                if (queue := self._waiting.get(token.id)) is not None:
                    self._queue(token, queue)
        elif isinstance(event, Failed) and not event.id:
            self.refusal = event
        elif (queue := self._waiting.get(event.id)) is not None:
            queue.put_nowait(_error(event) if isinstance(event, Failed) else event)

    def _queue(self, token: Token, queue: asyncio.Queue[Answer]) -> None:
        """Queue a token for its request, or end the request when too many wait to be read."""
        if queue.qsize() < MAX_QUEUED_TOKENS:
            queue.put_nowait(token)
            return
        del self._waiting[token.id]
        self._send(Cancel(token.id))
        queue.put_nowait(
            Overloaded(
                f"{MAX_QUEUED_TOKENS} tokens of this answer wait to be read; read streams as they come, or ask for less at once",
                code="client_too_slow",
            )
        )


def _error(event: Failed) -> TuneryError:
    return _ERRORS.get(event.code, Unavailable)(event.message, code=event.code)
