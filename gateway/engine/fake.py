"""FakeEngine: a public test double that answers at once from a script, in the caller's process and without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.interface import Outage
from tunery.gateway.engine.messages import (
    Embed,
    Embedded,
    Generate,
    Loaded,
    PromptScore,
    Ready,
    Stats,
    Timings,
    Token,
    TopToken,
    Unloaded,
)
from tunery.registry.errors import TuneryError, Unavailable

__all__ = ["FakeEngine"]


class FakeEngine:
    """Answers every request with `reply` (token ids), or what `reply(request)` returns, one token
    every `delay` seconds.

    With `FakeEngine.echo` as `reply`, it answers with the prompt. `requests` and `embeds` record the requests,
    `loaded`, `pinned` and `unloaded` the digests of these commands, `cancelled` the ids of cancelled requests.
    `failure` is raised instead of answering, `cached` is how many tokens of each prompt it reports as found in the
    prefix cache, and `timings` what it reports of their times. All may be changed while it runs.
    """

    def __init__(
        self,
        reply: Sequence[int] | Callable[[Generate], Sequence[int]] = (),
        *,
        delay: float = 0.0,
        context_length: int = 1024,
        eos_id: int = 2,
        base: str = "tiny",
        base_digest: str = "b" * 64,
    ) -> None:
        self.reply = reply
        self.delay = delay
        self._eos_id = eos_id
        self._ready: Ready | None = Ready(
            base=base,
            base_digest=base_digest,
            quant="none",
            dtype="float32",
            device="cpu",
            context_length=context_length,
            vocab_size=1 << 20,
            base_bytes=0,
            adapter_budget=0,
            max_batch=4,
            load_seconds=0.0,
        )
        self._callbacks: list[Callable[[Stats], None]] = []
        self._stats: Stats | None = None
        self.loaded: list[str] = []
        self.pinned: list[str] = []
        self.unloaded: list[str] = []
        self.requests: list[Generate] = []
        self.embeds: list[Embed] = []
        self.cached = 0
        self.timings = Timings()
        self.cancelled: list[str] = []
        self.failure: TuneryError | None = None

    @property
    def ready(self) -> Ready | None:
        """See Engine.ready."""
        return self._ready

    @property
    def outage(self) -> Outage | None:
        """See Engine.outage."""
        return None if self._ready is not None else Outage("starting", 7)

    @staticmethod
    def echo(request: Generate) -> Sequence[int]:
        """A reply that is the prompt."""
        return request.prompt

    @property
    def stats(self) -> Stats | None:
        """See Engine.stats: what `report` was given last."""
        return self._stats

    @property
    def restarts(self) -> int:
        """See Engine.restarts."""
        return 0

    def on_stats(self, callback: Callable[[Stats], None]) -> None:
        """See Engine.on_stats; use `report` to call them."""
        self._callbacks.append(callback)

    def report(self, stats: Stats) -> None:
        """Pretend that the engine sent `stats`."""
        self._stats = stats
        for callback in self._callbacks:
            callback(stats)

    def die(self) -> None:
        """Be not ready from now on."""
        self._ready = None

    async def start(self) -> None:
        """See Engine.start: there is nothing to start."""

    async def wait_ready(self) -> Ready:
        """See Engine.wait_ready: ready at once, or Unavailable after `die`."""
        if self._ready is None:
            raise Unavailable("the fake engine is dead")
        return self._ready

    async def stop(self) -> None:
        """See Engine.stop: running requests fail, as when the process ends."""
        self.die()
        self.failure = self.failure or Unavailable("the fake engine has stopped", code="engine_restarted")

    async def generate(self, request: Generate) -> AsyncGenerator[Token, None]:
        """See Engine.generate: the scripted tokens, then the end-of-turn token if `max_tokens` leaves room for it."""
        self.requests.append(request)
        if self._ready is None:
            raise Unavailable("the engine is starting", code="engine_starting")
        sampling = request.sampling
        reply = [*(self.reply(request) if callable(self.reply) else self.reply), self._eos_id]
        ended = False
        try:
            for index, token in enumerate(reply[: sampling.max_tokens]):
                await self._pause()
                stops = token == self._eos_id or token in sampling.stop_token_ids
                ended = stops or index + 1 == sampling.max_tokens
                made = Token(
                    request.id,
                    token,
                    -0.5,
                    "stop" if stops else "length" if ended else None,
                    _top(token, sampling.logprobs),
                )
                yield (
                    made
                    if index
                    else msgspec.structs.replace(
                        made, cached_tokens=self.cached, prompt_scores=_scores(request), timings=self.timings
                    )
                )
                if ended:
                    return
        finally:
            if not ended:
                self.cancelled.append(request.id)

    async def embed(self, request: Embed) -> Embedded:
        """See Engine.embed: a vector of two numbers, the prompt's length and its last token."""
        self.embeds.append(request)
        if self._ready is None:
            raise Unavailable("the engine is starting", code="engine_starting")
        try:
            await self._pause()
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        return Embedded(request.id, [float(len(request.prompt)), float(request.prompt[-1])], self.timings)

    async def load(self, adapter: AdapterSource, *, pin: bool = False) -> Loaded:
        """See Engine.load: loaded at once."""
        if self.failure is not None:
            raise self.failure
        self.loaded.append(adapter.digest)
        if pin:
            self.pinned.append(adapter.digest)
        return Loaded("", adapter.digest, 1000)

    async def unload(self, digest: str) -> Unloaded:
        """See Engine.unload: unloaded at once."""
        self.unloaded.append(digest)
        return Unloaded("", digest, 1000)

    async def _pause(self) -> None:
        await asyncio.sleep(self.delay)
        if self.failure is not None:
            raise self.failure


def _top(token: int, count: int | None) -> tuple[TopToken, ...]:
    """Alternatives: the token itself, then the ids after it."""
    return tuple(TopToken(token + i, -0.5 - i) for i in range(count or 0))


def _scores(request: Generate) -> tuple[PromptScore, ...]:
    """The prompt's log-probabilities, if asked for: -0.25 for every token after the first."""
    wanted = request.sampling.prompt_logprobs
    return () if wanted is None else tuple(PromptScore(-0.25, _top(token, wanted)) for token in request.prompt[1:])
