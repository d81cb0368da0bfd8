"""Owns running a request's choices on the engine: one engine request a choice, measured, in the order their pieces come."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field

from tunery.gateway.api.http.trace import Trace
from tunery.gateway.api.response.detokenizer import TextOptions, TextStream
from tunery.gateway.api.schemas.responses import CachedTokens, Usage
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import Generate, Sampling, Token
from tunery.gateway.resolver import Target
from tunery.registry.errors import TuneryError

__all__ = ["Answers", "Piece", "Wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One choice that was asked for: continue `prompt`; or, when `silent`, only look at it, saying nothing."""

    prompt: tuple[int, ...]
    sampling: Sampling
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added to choice `index`; `finish` ends that choice. `shown` are the tokens that `text` begins."""

    index: int
    text: str
    token: Token
    finish: str | None
    first: bool
    shown: tuple[Token, ...]


@dataclass
class Answers:
    """The choices of one request while they are made. `marks` are control tokens that are shown as text."""

    gateway: Gateway
    target: Target
    wanted: Sequence[Wanted]
    shown: TextOptions
    trace: Trace
    marks: Mapping[int, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: float = field(default_factory=time.time)
    completion_tokens: int = 0

    def __post_init__(self) -> None:
        version = self.target.version
        self._label = self.gateway.metrics.label(self.target.label)
        self._cached: dict[tuple[int, ...], int] = {}
        self.trace.adapter = self.target.title
        self.trace.version = version.number if version else None
        self.trace.prompt_tokens, self.trace.completion_tokens = self.prompt_tokens, 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; choices that share one count it once."""
        return sum(len(prompt) for prompt in {wanted.prompt for wanted in self.wanted})

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return Usage(prompt, completion, prompt + completion, CachedTokens(sum(self._cached.values())))

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Every piece of every choice as it comes; closing this cancels them all."""
        count = len(self.wanted)
        with self.gateway.hold(count, self.target):
            async with contextlib.aclosing(self._choice(0) if count == 1 else self._together()) as pieces:
                async for piece in pieces:
                    yield piece

    async def _together(self) -> AsyncGenerator[Piece, None]:
        """The pieces of several choices, whichever comes next."""
        queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(maxsize=len(self.wanted))
        tasks = [asyncio.create_task(self._pump(index, queue)) for index in range(len(self.wanted))]
        try:
            left = len(tasks)
            while left:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, index: int, queue: asyncio.Queue[Piece | Exception | None]) -> None:
        try:
            async with contextlib.aclosing(self._choice(index)) as pieces:
                async for piece in pieces:
                    await queue.put(piece)
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    async def _choice(self, index: int) -> AsyncGenerator[Piece, None]:
        wanted = self.wanted[index]
        request = Generate(
            id=f"{self.id}-{index}",
            prompt=wanted.prompt,
            sampling=wanted.sampling,
            composition=self.target.composition,
            tenant=self.target.tenant,
        )
        text = TextStream(self.gateway.renderer, self.shown, self.marks)
        async with contextlib.aclosing(self._measured(request, text)) as tokens:
            async for token in tokens:
                piece, first = text.push(token), text.tokens == 1
                if first:
                    self._note_cached(wanted.prompt, token.cached)
                if wanted.silent:
                    yield Piece(index, "", token, text.finish, first, ())
                else:
                    self.completion_tokens += 1
                    self.trace.completion_tokens = self.completion_tokens
                    yield Piece(index, piece, token, text.finish, first, text.shown)
                if text.finish is not None:
                    return

    def _note_cached(self, prompt: tuple[int, ...], tokens: int) -> None:
        """Of choices that share a prompt, one may have found what another one computed; the least is what was there before."""
        self._cached[prompt] = min(tokens, self._cached.get(prompt, tokens))

    async def _measured(self, request: Generate, text: TextStream) -> AsyncGenerator[Token, None]:
        """The engine's tokens, counted and timed; how it went is told by `text`, which sees them first."""
        metrics, label = self.gateway.metrics, self._label
        metrics.prompt(label, tokens=len(request.prompt))
        last = self.trace.started
        count, failure = 0, ""
        try:
            async with contextlib.aclosing(self.gateway.engine.generate(request)) as tokens:
                async for token in tokens:
                    now = time.perf_counter()
                    metrics.token(label, first=count == 0, seconds=now - last)
                    self.trace.first_token = self.trace.first_token or now
                    count, last = count + 1, now
                    yield token
        except TuneryError as error:
            failure = error.code
            raise
        finally:
            outcome = failure or text.finish or "cancelled"
            metrics.finished(label, outcome=outcome, tokens=count, seconds=last - self.trace.started)
