"""Owns the state of one request inside the engine; refuses to decide when it runs."""

from __future__ import annotations

import torch

from tunery.gateway.engine.messages import AdapterSource, Generate

__all__ = ["Sequence"]


class Sequence:
    """A request on its way: its tokens so far, how many of them are in the cache, and where.

    `tokens` is prompt and output; `computed` counts those whose keys and values are cached; `slots` (int64, one per token
    it may ever have) is set on admission. `missed`: its adapter was not in memory. `stop_ids` end it with reason "stop".
    """

    def __init__(self, request: Generate, *, eos_ids: frozenset[int], arrived: float) -> None:
        self.id = request.id
        self.sampling = request.sampling
        self.adapter: AdapterSource | None = request.adapter
        self.prompt_length = len(request.prompt)
        self.tokens = list(request.prompt)
        self.computed = 0
        self.arrived = arrived
        self.slots: torch.Tensor | None = None
        self.missed = False
        own = frozenset(request.sampling.stop_token_ids)
        self.stop_ids = own if request.sampling.ignore_eos else own | eos_ids
        self.generator = torch.Generator()
        if request.sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(request.sampling.seed)

    @property
    def digest(self) -> str:
        """Identity of its adapter; empty for the bare base."""
        return self.adapter.digest if self.adapter else ""

    @property
    def output(self) -> list[int]:
        """The tokens generated so far."""
        return self.tokens[self.prompt_length :]

    @property
    def most(self) -> int:
        """The most tokens it can ever have."""
        return self.prompt_length + self.sampling.max_tokens

    def append(self, token: int) -> str | None:
        """Take the next token; return why the sequence ends with it, or None."""
        self.tokens.append(token)
        if token in self.stop_ids:
            return "stop"
        return "length" if len(self.tokens) >= self.most else None
