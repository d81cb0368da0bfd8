"""Owns one connection to a running engine: requests out, tokens in, sorted by request. Refuses to start or restart anything."""

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

__all__ = ["MOST_QUEUED", "RESTARTED", "EngineClient", "engine_gone"]

log = logging.getLogger("tunery.engine")

Answer = Token | Embedded | Loaded | Unloaded | TuneryError

_KINDS: dict[str, type[TuneryError]] = {
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


RESTARTED = "engine_restarted"
"""The code of whatever an engine had in hand when it ended."""

MOST_QUEUED = 1024
"""Tokens of one request that may wait to be taken. More than that is a client that does not read what it asked for."""


def engine_gone() -> Unavailable:
    """The error of whoever was waiting when the engine died."""
    return Unavailable(
        "the engine stopped while it worked on this request and is being restarted; send it again",
        code=RESTARTED,
    )


class EngineClient:
    """One engine's socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._waiting: dict[str, asyncio.Queue[Answer]] = {}
        self._alive = True
        self.refusal: Failed | None = None
        """Why the engine does not serve its base, if it said so; nobody waits for that."""

    async def listen(
        self,
        on_ready: Callable[[Ready], None],
        on_stats: Callable[[Stats], None],
        on_any: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """Hand out events until the engine is gone; then everybody who waits is told. `on_any` sees every one of them first."""
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
                    # Frames that have come already are read without waiting: let whoever they are for take them.
                    await asyncio.sleep(0)
        except (msgspec.DecodeError, Unavailable) as error:
            # Nothing after this can be trusted, so the engine is treated as one that died.
            log.error("the engine sent what is no event (%s); its connection is closed", error)
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
        """Ask the engine to end."""
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
        # First the sending: a command that cannot be written leaves nothing behind.
        self._send(command)
        queue: asyncio.Queue[Answer] = asyncio.Queue()
        self._waiting[command.id] = queue
        return queue

    def _send(self, command: Command) -> None:
        if self._alive and not self._writer.is_closing():
            write_command(self._writer, command)

    def _deliver(self, event: Tokens | Embedded | Failed | Loaded | Unloaded) -> None:
        """Give an event to whoever asked; what nobody waits for any more is dropped."""
        if isinstance(event, Tokens):
            for token in event.tokens:
                if (queue := self._waiting.get(token.id)) is not None:
                    self._queue(token, queue)
        elif isinstance(event, Failed) and not event.id:
            self.refusal = event
        elif (queue := self._waiting.get(event.id)) is not None:
            queue.put_nowait(_error(event) if isinstance(event, Failed) else event)

    def _queue(self, token: Token, queue: asyncio.Queue[Answer]) -> None:
        """Give a token to its request, or end the request when too many wait already."""
        if queue.qsize() < MOST_QUEUED:
            queue.put_nowait(token)
            return
        del self._waiting[token.id]
        self._send(Cancel(token.id))
        queue.put_nowait(
            Overloaded(
                f"{MOST_QUEUED} tokens of this answer wait to be read; read streams as they come, or ask for less at once",
                code="client_too_slow",
            )
        )


def _error(event: Failed) -> TuneryError:
    return _KINDS.get(event.code, Unavailable)(event.message, code=event.code)
