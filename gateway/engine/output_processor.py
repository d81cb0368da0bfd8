"""From a forward pass to events: sampled tokens, prompt log-probabilities, and pooled embeddings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from tunery.gateway.engine.composition import composition_title
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.messages import Embedded, Event, Failed, Token, Tokens
from tunery.gateway.engine.sampling.sampler import Choice, Reduction, sample, score
from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch, OutputRow, ScheduledTokens
from tunery.gateway.engine.scheduling.scheduler import Scheduler
from tunery.gateway.engine.scheduling.sequence import Sequence
from tunery.registry.errors import ArtifactRefused, StorageFailed, TuneryError

__all__ = ["OutputProcessor"]


class OutputProcessor:
    """Takes what the model computed, ends the sequences that are done, and returns what to report.

    `reduce` is the model's `argmax_logsumexp`, or the sampler's.
    """

    def __init__(
        self,
        config: EngineConfig,
        scheduler: Scheduler,
        reduce: Reduction,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._scheduler = scheduler
        self._reduce = reduce
        self._clock = clock

    def process(
        self, scheduled: list[ScheduledTokens], batch: ForwardBatch, logits: torch.Tensor, hidden: torch.Tensor
    ) -> list[Event]:
        """The events of one forward pass; to be called after `Scheduler.advance` for its tokens.

        `logits` are float32 [len(batch.logits), vocabulary], `hidden` float32 [len(batch.hidden), hidden size].
        """
        events: list[Event] = []
        scored = [row for row in batch.logits if not row.sample]
        if scored:
            self._score(scored, _select(scored, batch.logits, logits), events)
        sampled = [row for row in batch.logits if row.sample and self._is_live(row.sequence)]
        if sampled:
            self._sample([row.sequence for row in sampled], _select(sampled, batch.logits, logits), events)
        self._pool(scheduled, batch.hidden, hidden, events)
        return events

    def _score(self, rows: list[OutputRow], logits: torch.Tensor, events: list[Event]) -> None:
        """Add log-probabilities of prompt tokens to their sequences."""
        tokens = [row.sequence.tokens[row.position + 1] for row in rows]
        counts = [row.sequence.sampling.prompt_logprobs for row in rows]
        for row, result in zip(rows, score(logits, tokens, counts, self._reduce), strict=True):
            if result is not None:
                row.sequence.prompt_logprobs.append(result)
            elif self._is_live(row.sequence):
                self._fail(row.sequence, events)

    def _sample(self, sequences: list[Sequence], logits: torch.Tensor, events: list[Event]) -> None:
        """Choose the next token of each sequence."""
        tokens: list[Token] = []
        for sequence, choice in zip(sequences, sample(logits, sequences, self._reduce), strict=True):
            if choice is None:
                self._fail(sequence, events)
            elif (token := self._append(sequence, choice, events)) is not None:
                tokens.append(token)
        events.append(Tokens(tokens))

    def _append(self, sequence: Sequence, choice: Choice, events: list[Event]) -> Token | None:
        """Add a chosen token to its sequence; None when the sequence's guide fails with it."""
        first = not sequence.output
        finish = sequence.append(choice.token)
        if sequence.guide is not None and finish is None and sequence.guide.failure:
            events.append(Failed(sequence.id, "invalid_constraint", sequence.guide.failure))
            self._scheduler.finish(sequence)
            return None
        if finish is not None:
            self._scheduler.finish(sequence)
        extra: tuple[Any, ...] = ()
        if first:
            extra = (sequence.cached, tuple(sequence.prompt_logprobs), sequence.timings(self._clock()))
        return Token(sequence.id, choice.token, choice.logprob, finish, choice.top, *extra)

    def _pool(
        self, scheduled: list[ScheduledTokens], rows: tuple[OutputRow, ...], hidden: torch.Tensor, events: list[Event]
    ) -> None:
        """Add hidden states to their sequences' sums, and answer the embeddings that are complete."""
        for row, state in zip(rows, hidden, strict=True):
            pooled = row.sequence.pooled
            row.sequence.pooled = state.double() if pooled is None else pooled + state.double()
        for sequence in (item.sequence for item in scheduled):
            if sequence.pooling is None or sequence.uncomputed or sequence.pooled is None:
                continue
            count = sequence.prompt_length if sequence.pooling == "mean" else 1
            if not sequence.pooled.isfinite().all():
                self._fail(sequence, events)
                continue
            events.append(Embedded(sequence.id, (sequence.pooled / count).tolist(), sequence.timings(self._clock())))
            self._scheduler.finish(sequence)

    def _is_live(self, sequence: Sequence) -> bool:
        """Whether a sequence has not ended in this pass."""
        return self._scheduler.find(sequence.id) is sequence

    def _fail(self, sequence: Sequence, events: list[Event]) -> None:
        """End a sequence whose numbers are not finite."""
        error = _not_finite(composition_title(sequence.composition), self._config)
        events.append(Failed(sequence.id, error.code, error.message))
        self._scheduler.finish(sequence)


def _select(wanted: list[OutputRow], rows: tuple[OutputRow, ...], logits: torch.Tensor) -> torch.Tensor:
    """The rows of `logits`, one for each of `rows`, that belong to `wanted`."""
    if len(wanted) == len(rows):
        return logits
    index = {id(row): at for at, row in enumerate(rows)}
    return logits[torch.tensor([index[id(row)] for row in wanted], device=logits.device)]


def _not_finite(adapters: str, config: EngineConfig) -> TuneryError:
    """The error of a request whose logits or hidden states are NaN or infinite: its adapters'
    fault, or else the base's."""
    if adapters:
        return ArtifactRefused(
            f"{adapters} gives numbers that are not finite (NaN or infinity) on this base in {config.dtype}: its weights, its "
            "lora_alpha or the weights of the composition are too large; publish another version",
            code="nonfinite_output",
        )
    return StorageFailed(
        f"the base {config.base_name} by itself gives numbers that are not finite (NaN or infinity) in {config.dtype}: its files "
        "are damaged, or too large for that format; add it again, or serve with --dtype float32",
        code="base_nonfinite",
    )
