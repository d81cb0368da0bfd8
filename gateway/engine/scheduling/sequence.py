"""The state of one request inside the engine: its tokens, what of them is computed, and what it holds while it runs."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from tunery.gateway.engine.composition import WeightedAdapter, composition_digest
from tunery.gateway.engine.messages import Embed, Generate, PromptScore, Timings
from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE, next_page_key, prefix_keys, prefix_root

if TYPE_CHECKING:
    import torch

    from tunery.gateway.engine.adapters.interface import ServedAdapter
    from tunery.gateway.engine.structured_output.guide import Guide

__all__ = ["HeldAdapters", "Sequence"]

HeldAdapters = tuple[tuple["ServedAdapter", float], ...]
"""The adapters that a running sequence holds, each with its weight in the composition."""


class Sequence:
    """A request, waiting or running.

    Tokens: `tokens` is the prompt followed by the output. The keys and values of the first `computed` tokens are in the
    KV cache, in `pages`; `page_keys` are the prefix-cache keys of its whole pages. `cached` is how many prompt tokens
    the prefix cache had when the sequence first started. Its tenant has been charged for the first `charged` tokens:
    recomputing after a preemption is free.

    Scheduling: one in the `background` runs only on what the others leave. `since` is when it began to wait or to run, in the scheduler's seconds. `admission` numbers the starts
    of all sequences (0: never started), and `length_at_start` is how many tokens it had at its latest start. `adapters`
    are held while it runs; `adapters_requested` says that they were asked for before, `adapter_missed` that one was not
    resident.

    Times, in the scheduler's seconds: when it was `submitted`, when the adapters were `loaded` that it had to wait for
    (None: for none), and when it first `started`.

    Results: `prompt_logprobs` are those of the prompt's tokens from the second on, as far as they are computed;
    `pooled` is the running sum (or the last) of an Embed's hidden states, float64 [hidden size].
    """

    def __init__(self, request: Generate | Embed, *, eos_ids: frozenset[int], now: float) -> None:
        self.id = request.id
        self.composition: tuple[WeightedAdapter, ...] = request.composition
        self.tenant = request.tenant
        self.background = request.background
        self.sampling = request.sampling if isinstance(request, Generate) else SamplingParams(max_tokens=1)
        self.pooling: Literal["mean", "last"] | None = request.pooling if isinstance(request, Embed) else None
        self.digest = composition_digest(request.composition)
        self.adapter_digests = frozenset(part.source.digest for part in request.composition)
        self.prompt_length = len(request.prompt)
        self.tokens = list(request.prompt)
        self._prefix_root = prefix_root(request.cache_salt, self.digest)
        self.page_keys = prefix_keys(self._prefix_root, self.tokens)
        self.computed = 0
        self.cached = 0
        self.charged = 0
        self.pages: list[int] = []
        self.adapters: HeldAdapters = ()
        self.submitted = self.since = now
        self.loaded: float | None = None
        self.started: float | None = None
        self.admission = self.length_at_start = 0
        self.adapters_requested = self.adapter_missed = False
        self.prompt_logprobs: list[PromptScore] = []
        self.pooled: torch.Tensor | None = None
        self.guide: Guide | None = None
        self._noise = random.Random(self.sampling.seed)  # noqa: S311 - noise, not a secret
        stop_ids = frozenset(self.sampling.stop_token_ids)
        self.stop_ids = stop_ids if self.sampling.ignore_eos and not self.sampling.constraint else stop_ids | eos_ids

    @property
    def uncomputed(self) -> int:
        """Known tokens whose keys and values are not in the KV cache."""
        return len(self.tokens) - self.computed

    @property
    def uncharged(self) -> int:
        """Known tokens for which the tenant has not been charged."""
        return len(self.tokens) - max(self.computed, self.charged)

    @property
    def decoding(self) -> bool:
        """Whether only its newest token is left to compute; otherwise it is in prefill."""
        return self.uncomputed == 1 and self.answering

    @property
    def answering(self) -> bool:
        """Whether it has a token of its output."""
        return len(self.tokens) > self.prompt_length

    @property
    def output(self) -> list[int]:
        """The tokens generated so far."""
        return self.tokens[self.prompt_length :]

    @property
    def max_length(self) -> int:
        """The most tokens that prompt and output can have."""
        return self.prompt_length + self.sampling.max_tokens

    @property
    def scoring(self) -> bool:
        """Whether log-probabilities of its prompt's tokens are still to be computed."""
        return self.sampling.prompt_logprobs is not None and len(self.prompt_logprobs) < self.prompt_length - 1

    @property
    def shareable_pages(self) -> int:
        """How many whole pages it may take from the prefix cache.

        At least one token is always computed, for its logits; where every position's logits or
        hidden state is wanted, all are.
        """
        if self.pooling or self.scoring:
            return 0
        return (len(self.tokens) - 1) // PAGE_SIZE

    def advance(self, count: int) -> list[tuple[int, bytes]]:
        """Record that `count` more tokens are computed; return the pages that are complete now, with their keys."""
        before, self.computed = self.computed // PAGE_SIZE, self.computed + count
        complete = self.computed // PAGE_SIZE
        while len(self.page_keys) < complete:
            start = len(self.page_keys) * PAGE_SIZE
            previous = self.page_keys[-1] if start else self._prefix_root
            self.page_keys.append(next_page_key(previous, self.tokens[start : start + PAGE_SIZE]))
        return [(self.pages[index], self.page_keys[index]) for index in range(before, complete)]

    def start(self, adapters: HeldAdapters, admission: int, now: float) -> None:
        """Begin to run, as start number `admission`."""
        self.adapters, self.admission, self.since = adapters, admission, now
        self.length_at_start = len(self.tokens)
        self.started = now if self.started is None else self.started

    def note_loaded(self, now: float) -> None:
        """Note that the adapters which it had to wait for are in memory."""
        if self.adapter_missed and self.loaded is None:
            self.loaded = now

    def preempt(self, now: float) -> None:
        """Go back to waiting: what was computed must be found in the prefix cache or computed again."""
        self.computed = 0
        self.pooled = None
        self.since = now

    def timings(self, now: float) -> Timings:
        """What is reported when the prompt has been computed, `now`."""
        loaded = None if self.loaded is None else self.loaded - self.submitted
        started = now if self.started is None else self.started
        return Timings(loaded, started - self.submitted, now - self.submitted)

    def noise(self) -> float:
        """The next uniform random number in [0, 1) of the request's own generator."""
        return self._noise.random()

    def append(self, token: int) -> str | None:
        """Add the next token; return "stop" or "length" if the sequence ends with it, else None."""
        self.tokens.append(token)
        if token in self.stop_ids:
            return "stop"
        if self.guide is not None:
            self.guide.accept(token)
        return "length" if len(self.tokens) >= self.max_length else None
