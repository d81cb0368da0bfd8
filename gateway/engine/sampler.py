"""Owns choosing the next token from logits, row by row; refuses to let one row's choice depend on another's.

A request's noise comes from its own generator, so a seed gives the same text whatever the neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from tunery.gateway.engine.messages import Sampling, TopToken
from tunery.gateway.engine.sequence import Sequence

__all__ = ["Choice", "sample"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token with its natural-log probability under the unmodified model and the alternatives asked for."""

    token: int
    logprob: float
    top: tuple[TopToken, ...]


def sample(logits: torch.Tensor, sequences: Rows[Sequence]) -> list[Choice]:
    """Choose one token per row of `logits` [R, vocabulary], row i for `sequences[i]`."""
    logits = logits.float()
    # Row by row: over all rows at once the sum is split among threads in another way for another number of rows.
    log_z = torch.stack([row.logsumexp(dim=0) for row in logits])
    greedy = logits.argmax(dim=-1)
    tokens = torch.stack([_choose(logits[i], greedy[i], sequence) for i, sequence in enumerate(sequences)])
    chosen = logits.gather(1, tokens[:, None])[:, 0] - log_z
    tops = [_alternatives(logits[i], log_z[i], sequence.sampling.logprobs) for i, sequence in enumerate(sequences)]
    return [Choice(*row) for row in zip(tokens.tolist(), chosen.tolist(), tops, strict=True)]


def _choose(logits: torch.Tensor, greedy: torch.Tensor, sequence: Sequence) -> torch.Tensor:
    """The next token of one sequence, int64 []."""
    wanted = sequence.sampling
    changed = _adjust(logits, sequence)
    if wanted.temperature == 0:
        return greedy if changed is logits else changed.argmax()
    kept = _keep(changed / wanted.temperature, wanted)
    probabilities = torch.softmax(kept, dim=-1)
    # Exponential races pick i with probability p_i (the Gumbel-max trick without logarithms).
    noise = torch.empty(probabilities.shape).exponential_(generator=sequence.generator)
    return (probabilities / noise.to(probabilities.device)).argmax()


def _adjust(logits: torch.Tensor, sequence: Sequence) -> torch.Tensor:
    """Apply bias, penalties and the ban on stopping too early; the same tensor when there is nothing to apply."""
    wanted = sequence.sampling
    result = logits
    if wanted.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.tokens)), device=logits.device)
        values = logits[seen]
        penalised = torch.where(values > 0, values / wanted.repetition_penalty, values * wanted.repetition_penalty)
        result = result.index_put((seen,), penalised)
    if wanted.presence_penalty or wanted.frequency_penalty:
        used, counts = torch.tensor(sequence.output, dtype=torch.int64, device=logits.device).unique(return_counts=True)
        cost = wanted.presence_penalty + wanted.frequency_penalty * counts
        result = result.index_add(0, used, -cost.to(result.dtype))
    if wanted.logit_bias:
        where = torch.tensor(list(wanted.logit_bias), device=logits.device)
        bias = torch.tensor(list(wanted.logit_bias.values()), device=logits.device, dtype=result.dtype)
        result = result.index_add(0, where, bias)
    if len(sequence.output) < wanted.min_tokens and sequence.stop_ids:
        result = result.index_fill(0, torch.tensor(sorted(sequence.stop_ids), device=logits.device), -torch.inf)
    return result


def _keep(logits: torch.Tensor, wanted: Sampling) -> torch.Tensor:
    """Mask what top-k, top-p (arXiv 1904.09751) and min-p leave out."""
    if 0 < wanted.top_k < logits.shape[0]:
        threshold = logits.topk(wanted.top_k).values[-1]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if wanted.top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(dim=-1)
        beyond = probabilities.cumsum(dim=-1) - probabilities >= wanted.top_p
        logits = logits.index_fill(0, order[beyond], -torch.inf)
    if wanted.min_p > 0:
        probabilities = logits.softmax(dim=-1)
        logits = logits.masked_fill(probabilities < wanted.min_p * probabilities.max(), -torch.inf)
    return logits


def _alternatives(logits: torch.Tensor, log_z: torch.Tensor, count: int | None) -> tuple[TopToken, ...]:
    if not count:
        return ()
    best = logits.topk(count)
    return tuple(TopToken(*pair) for pair in zip(best.indices.tolist(), (best.values - log_z).tolist(), strict=True))
