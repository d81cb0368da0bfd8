"""Runs a request's choices on the engine, one engine request for each, and counts and times their tokens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from tunery.gateway.api.request.call import Call
from tunery.gateway.api.request.choices import ChoiceRequest
from tunery.gateway.api.request.text_options import TextOptions
from tunery.gateway.api.response.detokenizer import Detokenizer
from tunery.gateway.api.response.metering import CANCELLED, COMPLETED, TokenCounts, metered
from tunery.gateway.api.schemas.responses import CachedTokens, Usage
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import Generate, Token
from tunery.gateway.resolver import Target
from tunery.plugins.runtime.unique_id import unique_id
from tunery.registry.errors import TuneryError

__all__ = ["Generation", "OutputDelta"]


class OutputDelta(msgspec.Struct, frozen=True):
    """What one token added to choice `index`; `finish` ends it. The text of the tokens in `shown` starts in `text`."""

    index: int
    text: str
    token: Token
    finish: str | None
    first: bool
    shown: tuple[Token, ...]


@dataclass
class Generation:
    """The choices of one call while they are generated. `marks` are control tokens to show, as text to token id."""

    gateway: Gateway
    target: Target
    choices: Sequence[ChoiceRequest]
    text_options: TextOptions
    call: Call
    marks: Mapping[str, int] = field(default_factory=dict)
    id: str = field(default_factory=unique_id)
    created: float = field(default_factory=time.time)
    completion_tokens: int = 0

    def __post_init__(self) -> None:
        version = self.target.version
        self._subject = self.gateway.subject(self.target)
        self.fingerprint = self.target.fingerprint
        self._shown_controls = {token: text for text, token in self.marks.items()}
        self._cached: dict[tuple[int, ...], int] = {}
        self._trace = self.call.trace
        self._trace.adapter = self.target.title
        self._trace.version = version.number if version else None
        self._trace.prompt_tokens, self._trace.completion_tokens = self.prompt_tokens, 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; choices that share one count it once."""
        return sum(len(prompt) for prompt in {choice.prompt for choice in self.choices})

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return Usage(prompt, completion, prompt + completion, CachedTokens(sum(self._cached.values())))

    async def deltas(self) -> AsyncGenerator[OutputDelta, None]:
        """The deltas of all choices as they come; closing the generator cancels every choice.

        Raises LimitReached, Busy or InvalidInput when the choices are not admitted, and what the engine raises.
        """
        count, most = len(self.choices), self.prompt_tokens + sum(each.sampling.max_tokens for each in self.choices)
        async with metered(self.call, self.target, gateway=self.gateway, most=most, used=self._used) as reservation:
            with self.gateway.hold(count, self.target, background=self.call.background):
                reservation.begun = True
                async with contextlib.aclosing(self._choice(0) if count == 1 else self._interleaved()) as deltas:
                    async for delta in deltas:
                        yield delta

    def _used(self, outcome: str) -> TokenCounts:
        """The tokens so far. A prompt counts unless the engine failed before its first token."""
        usage = self.usage
        read = bool(self._cached) or outcome in (COMPLETED, CANCELLED)
        prompt = usage.prompt_tokens if read else 0
        return TokenCounts(prompt, usage.prompt_tokens_details.cached_tokens, usage.completion_tokens)

    async def _interleaved(self) -> AsyncGenerator[OutputDelta, None]:
        """The deltas of several choices, in the order in which they come."""
        queue: asyncio.Queue[OutputDelta | Exception | None] = asyncio.Queue(maxsize=len(self.choices))
        tasks = [asyncio.create_task(self._pump(index, queue)) for index in range(len(self.choices))]
        try:
            unfinished = len(tasks)
            while unfinished:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    unfinished -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, index: int, queue: asyncio.Queue[OutputDelta | Exception | None]) -> None:
        try:
            async with contextlib.aclosing(self._choice(index)) as deltas:
                async for delta in deltas:
                    await queue.put(delta)
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    async def _choice(self, index: int) -> AsyncGenerator[OutputDelta, None]:
        choice = self.choices[index]
        request = Generate(
            id=f"{self.id}-{index}",
            prompt=choice.prompt,
            sampling=choice.sampling,
            composition=self.target.composition,
            tenant=self.target.tenant,
            cache_salt=self.target.cache_salt,
            background=self.call.background,
        )
        detokenizer = Detokenizer(self.gateway.renderer, self.text_options, self._shown_controls)
        async with contextlib.aclosing(self._measured(request, detokenizer)) as tokens:
            async for token in tokens:
                text, first = detokenizer.push(token), detokenizer.tokens == 1
                if first:
                    self._note_cached(choice.prompt, token.cached_tokens)
                if choice.silent:
                    yield OutputDelta(index, "", token, detokenizer.finish, first, ())
                else:
                    self.completion_tokens += 1
                    self._trace.completion_tokens = self.completion_tokens
                    yield OutputDelta(index, text, token, detokenizer.finish, first, detokenizer.shown)
                if detokenizer.finish is not None:
                    return

    def _note_cached(self, prompt: tuple[int, ...], tokens: int) -> None:
        """Keep the least that choices with the same prompt report: one may find what another has just computed."""
        self._cached[prompt] = min(tokens, self._cached.get(prompt, tokens))
        self._trace.cached_tokens = sum(self._cached.values())

    async def _measured(self, request: Generate, detokenizer: Detokenizer) -> AsyncGenerator[Token, None]:
        """The engine's tokens, counted and timed. The outcome is the detokenizer's, which also sees stop strings."""
        metrics, subject, timed = self.gateway.metrics, self._subject, not request.background
        metrics.count_prompt(subject, tokens=len(request.prompt))
        last = self._trace.started
        self._trace.note_handed()
        count, failure = 0, ""
        try:
            async with (
                self.gateway.place(background=request.background),
                contextlib.aclosing(self.gateway.engine.generate(request)) as tokens,
            ):
                async for token in tokens:
                    now = time.perf_counter()
                    if timed:
                        metrics.observe_token(subject, first=count == 0, seconds=now - last)
                    self._trace.note_token(now)
                    if count == 0:
                        self._trace.timings = self._trace.timings or token.timings
                    count, last = count + 1, now
                    yield token
        except TuneryError as caught:
            error = self.gateway.cause_of(caught)
            failure = self._trace.error = error.code
            if error is caught:
                raise
            raise error from caught
        finally:
            self._trace.finish_reason = detokenizer.finish
            outcome = failure or detokenizer.finish or "cancelled"
            seconds = last - self._trace.started if timed else None
            metrics.count_finished(subject, outcome=outcome, tokens=count, seconds=seconds)
