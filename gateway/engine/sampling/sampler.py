"""Choosing the next token from logits, row by row: one row's choice never depends on another's.

Each request draws one uniform number for a token from its own generator, so a seed gives the same
text whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TypeVar

import torch

from tunery.gateway.engine.messages import PromptScore, TopToken
from tunery.gateway.engine.sampling.logits_processors import adjust_logits, truncate_logits
from tunery.gateway.engine.scheduling.sequence import Sequence
from tunery.gateway.engine.structured_output.guide import apply_masks

__all__ = ["Choice", "Reduction", "argmax_logsumexp", "sample", "score"]

R = TypeVar("R")

Reduction = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""What `argmax_logsumexp` computes; a model may have a faster one, whose rows do not depend on each other either."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token, its natural-log probability under the unmodified model, and the alternatives asked for."""

    token: int
    logprob: float
    top: tuple[TopToken, ...]


def argmax_logsumexp(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of `logits` [R, n], the index of the largest, int64 [R], and the log of the sum
    of exponentials, [R]."""
    # Row by row: over all rows at once, the way the sum is split among threads depends on the number of rows.
    return logits.argmax(dim=-1), torch.stack([row.logsumexp(dim=0) for row in logits])


def sample(
    logits: torch.Tensor, sequences: Rows[Sequence], reduce: Reduction = argmax_logsumexp
) -> list[Choice | None]:
    """Choose one token for each row of `logits` float32 [R, vocabulary]; row i is that of `sequences[i]`.

    None for a row that contains NaN or plus infinity. `logits` are not changed.
    """
    best, log_z = reduce(logits)
    tokens = best.clone()
    changed = [index for index, sequence in enumerate(sequences) if not _is_greedy(sequence)]
    if changed:
        where = torch.tensor(changed, device=logits.device)
        tokens[where] = _draw(logits[where], [sequences[index] for index in changed])
    logprobs = logits.gather(1, tokens[:, None])[:, 0] - log_z
    tops = [_top_tokens(logits[i], log_z[i], sequence.sampling.logprobs) for i, sequence in enumerate(sequences)]
    choices = [Choice(*row) for row in zip(tokens.tolist(), logprobs.tolist(), tops, strict=True)]
    return _only_finite(log_z, choices)


def score(
    logits: torch.Tensor, tokens: Rows[int], counts: Rows[int | None], reduce: Reduction = argmax_logsumexp
) -> list[PromptScore | None]:
    """The log-probability of `tokens[i]` given row i of `logits` float32 [R, vocabulary], with
    `counts[i]` alternatives.

    None for a row that contains NaN or plus infinity.
    """
    _, log_z = reduce(logits)
    logprobs = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0] - log_z
    tops = (_top_tokens(logits[i], log_z[i], count) for i, count in enumerate(counts))
    return _only_finite(log_z, [PromptScore(*row) for row in zip(logprobs.tolist(), tops, strict=True)])


def _only_finite(log_z: torch.Tensor, results: list[R]) -> list[R | None]:
    """The results of rows whose `log_z` is finite; a NaN or plus infinity anywhere in a row shows in it."""
    return [result if finite else None for result, finite in zip(results, log_z.isfinite().tolist(), strict=True)]


def _is_greedy(sequence: Sequence) -> bool:
    """Whether the largest of the unmodified logits is the choice."""
    params = sequence.sampling
    return (
        params.temperature == 0
        and sequence.guide is None
        and params.repetition_penalty == 1.0
        and not (params.presence_penalty or params.frequency_penalty or params.logit_bias)
        and not (params.allowed_token_ids or params.bad_words)
        and len(sequence.output) >= params.min_tokens
    )


def _draw(logits: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor:
    """The next token of each sequence, int64 [R]; changes `logits`."""
    for row, sequence in zip(logits, sequences, strict=True):
        adjust_logits(row, sequence)
    apply_masks([sequence.guide for sequence in sequences], logits)
    temperatures = torch.tensor([sequence.sampling.temperature for sequence in sequences], device=logits.device)
    greedy = temperatures == 0
    # Relative to the largest, so that a tiny temperature does not make every logit infinite.
    logits -= logits.amax(dim=-1, keepdim=True)
    logits /= torch.where(greedy, 1.0, temperatures)[:, None]
    for row, sequence in zip(logits, sequences, strict=True):
        truncate_logits(row, sequence.sampling)
    # Inverse transform sampling: the first token at which the cumulative probability exceeds the noise.
    cumulative = torch.softmax(logits, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    noise = torch.tensor([sequence.noise() for sequence in sequences], dtype=torch.float64, device=logits.device)
    drawn = torch.searchsorted(cumulative, (noise * cumulative[:, -1])[:, None], right=True)[:, 0]
    return torch.where(greedy, logits.argmax(dim=-1), drawn.clamp_(max=logits.shape[1] - 1))


def _top_tokens(logits: torch.Tensor, log_z: torch.Tensor, count: int | None) -> tuple[TopToken, ...]:
    if not count:
        return ()
    best = logits.topk(count)
    return tuple(TopToken(*pair) for pair in zip(best.indices.tolist(), (best.values - log_z).tolist(), strict=True))
