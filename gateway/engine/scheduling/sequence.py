"""Owns the state of one request inside the engine; refuses to decide when it runs."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from tunery.gateway.engine.messages import Embed, Generate, Sampling, Score, WeightedAdapter, composition_digest
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE, next_key, prefix_keys

if TYPE_CHECKING:
    import torch

    from tunery.gateway.engine.adapters.interface import ServedAdapter
    from tunery.gateway.engine.structured_output.grammars import Guide

__all__ = ["Sequence"]


class Sequence:
    """A request on its way: its tokens so far, how many of them are in the cache, and where.

    `tokens` is prompt and output; the keys and values of the first `computed` lie in `pages`. `since` is when it began to wait, or
    to run; `started` its place in the order of admissions (0: none yet), and `resumed` how many tokens it had then. `adapters` are
    held while it runs; they have been `asked` for, and some were `missed`, not being in memory. Its tenant has been served the
    first `paid` tokens: what is computed again is not paid for again. `scores` are the prompt's log-probabilities found so far,
    `pooled` the sum (or the last) of an Embed's hidden states.
    """

    def __init__(self, request: Generate | Embed, *, eos_ids: frozenset[int], now: float) -> None:
        self.id = request.id
        self.composition: tuple[WeightedAdapter, ...] = request.composition
        self.tenant = request.tenant
        self.sampling = request.sampling if isinstance(request, Generate) else Sampling(max_tokens=1)
        self.pooling: Literal["mean", "last"] | None = request.pooling if isinstance(request, Embed) else None
        self.digest = composition_digest(request.composition)
        self.prompt_length = len(request.prompt)
        self.tokens = list(request.prompt)
        self.keys = prefix_keys(self.digest, self.tokens)
        self.computed = 0
        self.cached = 0
        self.pages: list[int] = []
        self.adapters: tuple[tuple[ServedAdapter, float], ...] = ()
        self.since = now
        self.started = self.resumed = 0
        self.asked = self.missed = False
        self.paid = 0
        self.scores: list[Score] = []
        self.pooled: torch.Tensor | None = None
        self.guide: Guide | None = None
        self._noise = random.Random(self.sampling.seed)  # noqa: S311 - noise, not a secret
        own = frozenset(self.sampling.stop_token_ids)
        self.stop_ids = own if self.sampling.ignore_eos and not self.sampling.constraint else own | eos_ids

    @property
    def left(self) -> int:
        """Known tokens that are not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def unpaid(self) -> int:
        """Known tokens that its tenant has not been served yet."""
        return len(self.tokens) - max(self.computed, self.paid)

    @property
    def decoding(self) -> bool:
        """Whether only its newest token is left to compute."""
        return self.left == 1 and len(self.tokens) > self.prompt_length

    @property
    def output(self) -> list[int]:
        """The tokens generated so far."""
        return self.tokens[self.prompt_length :]

    @property
    def most(self) -> int:
        """The most tokens it can ever have."""
        return self.prompt_length + self.sampling.max_tokens

    @property
    def scoring(self) -> bool:
        """Whether the logits of its prompt's tokens are still wanted."""
        return self.sampling.prompt_logprobs is not None and len(self.scores) < self.prompt_length - 1

    @property
    def shareable(self) -> int:
        """How many whole pages of others it may use: at least one token is computed anew, and all where every logit is wanted."""
        if self.pooling or self.scoring:
            return 0
        return (len(self.tokens) - 1) // PAGE_SIZE

    def advance(self, count: int) -> list[tuple[int, bytes]]:
        """Note that `count` more tokens are computed; return the pages that are whole now, with their keys."""
        before, self.computed = self.computed // PAGE_SIZE, self.computed + count
        whole = self.computed // PAGE_SIZE
        while len(self.keys) < whole:
            at = len(self.keys) * PAGE_SIZE
            self.keys.append(next_key(self.keys[-1] if at else self.digest.encode(), self.tokens[at : at + PAGE_SIZE]))
        return [(self.pages[index], self.keys[index]) for index in range(before, whole)]

    def begin(self, adapters: tuple[tuple[ServedAdapter, float], ...], place: int, now: float) -> None:
        """Run, as the `place`th that was admitted."""
        self.adapters, self.started, self.since = adapters, place, now
        self.resumed = len(self.tokens)

    def interrupt(self, now: float) -> None:
        """Go back to waiting; what has been computed has to be found in the cache, or computed again."""
        self.computed = 0
        self.pooled = None
        self.since = now

    def noise(self) -> float:
        """The next of its own uniform random numbers in [0, 1)."""
        return self._noise.random()

    def append(self, token: int) -> str | None:
        """Take the next token; return why the sequence ends with it, or None."""
        self.tokens.append(token)
        if token in self.stop_ids:
            return "stop"
        if self.guide is not None:
            self.guide.accept(token)
        return "length" if len(self.tokens) >= self.most else None
