"""Owns running a request's choices on the engine: one engine request a choice, measured, in the order their pieces come."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from tunery.gateway.api.state import Gateway
from tunery.gateway.api.text import TextStream
from tunery.gateway.engine.messages import Generate, Sampling, Token
from tunery.gateway.resolver import Target
from tunery.registry.errors import TuneryError

__all__ = ["Answers", "Piece", "Wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One choice that was asked for: continue `prompt`."""

    prompt: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added to choice `index`; `finish` ends that choice."""

    index: int
    text: str
    token: Token
    finish: str | None


@dataclass
class Answers:
    """The choices of one request while they are made."""

    gateway: Gateway
    target: Target
    wanted: Sequence[Wanted]
    stops: tuple[str, ...]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: float = field(default_factory=time.time)
    completion_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; choices that share one count it once."""
        return sum(len(prompt) for prompt in {wanted.prompt for wanted in self.wanted})

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Every piece of every choice as it comes; closing this cancels them all."""
        self.gateway.admit(len(self.wanted))
        if len(self.wanted) == 1:
            async with contextlib.aclosing(self._choice(0)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
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
                    queue.put_nowait(piece)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    async def _choice(self, index: int) -> AsyncGenerator[Piece, None]:
        wanted = self.wanted[index]
        request = Generate(
            id=f"{self.id}-{index}", prompt=wanted.prompt, sampling=wanted.sampling, adapter=self.target.source
        )
        text = TextStream(self.gateway.renderer, self.stops)
        async with contextlib.aclosing(self._measured(request, text)) as tokens:
            async for token in tokens:
                shown = text.push(token)
                self.completion_tokens += 1
                yield Piece(index, shown, token, text.finish)
                if text.finish is not None:
                    return

    async def _measured(self, request: Generate, text: TextStream) -> AsyncGenerator[Token, None]:
        """The engine's tokens, counted and timed; how it went is told by `text`, which sees them first."""
        metrics, version = self.gateway.metrics, self.target.version
        label = metrics.label(version.adapter if version else None)
        metrics.prompt_tokens.labels(label).inc(len(request.prompt))
        metrics.vllm_prompt.labels(label).inc(len(request.prompt))
        metrics.vllm_prompt_size.labels(label).observe(len(request.prompt))
        started = last = time.perf_counter()
        count, failure = 0, ""
        self.gateway.in_flight += 1
        metrics.in_flight.set(self.gateway.in_flight)
        try:
            async with contextlib.aclosing(self.gateway.engine.generate(request)) as tokens:
                async for token in tokens:
                    now = time.perf_counter()
                    _observe_gap(self.gateway, label, first=count == 0, gap=now - last)
                    count, last = count + 1, now
                    yield token
        except TuneryError as error:
            failure = error.code
            raise
        finally:
            self.gateway.in_flight -= 1
            metrics.in_flight.set(self.gateway.in_flight)
            self._finish(label, failure or text.finish or "cancelled", count, last - started)

    def _finish(self, label: str, outcome: str, count: int, seconds: float) -> None:
        metrics = self.gateway.metrics
        metrics.requests.labels(label, outcome).inc()
        metrics.generated_tokens.labels(label).inc(count)
        metrics.vllm_generated.labels(label).inc(count)
        metrics.vllm_output_size.labels(label).observe(count)
        if outcome in ("stop", "length"):
            metrics.vllm_success.labels(label, outcome).inc()
            metrics.whole.labels(label).observe(seconds)
            metrics.vllm_whole.labels(label).observe(seconds)


def _observe_gap(gateway: Gateway, label: str, *, first: bool, gap: float) -> None:
    metrics = gateway.metrics
    ours, theirs = (metrics.first_token, metrics.vllm_first) if first else (metrics.per_token, metrics.vllm_gap)
    ours.labels(label).observe(gap)
    theirs.labels(label).observe(gap)
