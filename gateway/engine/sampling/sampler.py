"""Owns choosing the next token from logits, row by row; refuses to let one row's choice depend on another's.

A request's noise is one uniform number a token from its own generator, so a seed gives the same text whatever the neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TypeVar

import torch

from tunery.gateway.engine.messages import Sampling, Score, TopToken
from tunery.gateway.engine.scheduling.sequence import Sequence
from tunery.gateway.engine.structured_output.guide import apply_masks

__all__ = ["Choice", "Reduction", "argmax_logsumexp", "sample", "score"]

R = TypeVar("R")

Reduction = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""What `argmax_logsumexp` computes; a model may have a faster one, whose rows do not depend on each other either."""

FORBIDDEN = -1e30
"""The logit of what must not be said while anything else may."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token with its natural-log probability under the unmodified model and the alternatives asked for."""

    token: int
    logprob: float
    top: tuple[TopToken, ...]


def argmax_logsumexp(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of `logits` [R, n], the index of the largest and the log of the sum of exponentials; both [R]."""
    # Row by row: over all rows at once, the way the sum is split among threads depends on the number of rows.
    return logits.argmax(dim=-1), torch.stack([row.logsumexp(dim=0) for row in logits])


def sample(
    logits: torch.Tensor, sequences: Rows[Sequence], reduce: Reduction = argmax_logsumexp
) -> list[Choice | None]:
    """Choose one token per row of `logits` float32 [R, vocabulary], row i for `sequences[i]`; None where a row is not finite."""
    best, log_z = reduce(logits)
    tokens = best.clone()
    changed = [index for index, sequence in enumerate(sequences) if not _takes_the_best(sequence)]
    if changed:
        where = torch.tensor(changed, device=logits.device)
        tokens[where] = _choose(logits[where], [sequences[index] for index in changed])
    chosen = logits.gather(1, tokens[:, None])[:, 0] - log_z
    tops = [_alternatives(logits[i], log_z[i], sequence.sampling.logprobs) for i, sequence in enumerate(sequences)]
    choices = [Choice(*row) for row in zip(tokens.tolist(), chosen.tolist(), tops, strict=True)]
    return _where_finite(log_z, choices)


def score(
    logits: torch.Tensor, tokens: Rows[int], counts: Rows[int | None], reduce: Reduction = argmax_logsumexp
) -> list[Score | None]:
    """How likely `tokens[i]` is after row i of `logits` float32 [R, vocabulary], with `counts[i]` alternatives; None as in `sample`."""
    _, log_z = reduce(logits)
    chosen = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0] - log_z
    tops = (_alternatives(logits[i], log_z[i], count) for i, count in enumerate(counts))
    return _where_finite(log_z, [Score(*row) for row in zip(chosen.tolist(), tops, strict=True)])


def _where_finite(log_z: torch.Tensor, results: list[R]) -> list[R | None]:
    """Results whose rows add up to a finite number: NaN and plus infinity in a row show in its sum, and are in no answer."""
    return [result if finite else None for result, finite in zip(results, log_z.isfinite().tolist(), strict=True)]


def _takes_the_best(sequence: Sequence) -> bool:
    """Whether the largest logit is the choice, as it stands."""
    wanted = sequence.sampling
    return (
        wanted.temperature == 0
        and sequence.guide is None
        and wanted.repetition_penalty == 1.0
        and not (wanted.presence_penalty or wanted.frequency_penalty or wanted.logit_bias)
        and not (wanted.allowed_token_ids or wanted.bad_words)
        and len(sequence.output) >= wanted.min_tokens
    )


def _choose(logits: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor:
    """The next token of each sequence, int64 [R], from a copy of its logits that may be changed."""
    for row, sequence in zip(logits, sequences, strict=True):
        _adjust(row, sequence)
    apply_masks([sequence.guide for sequence in sequences], logits)
    heat = torch.tensor([sequence.sampling.temperature for sequence in sequences], device=logits.device)
    greedy = heat == 0
    # From the largest down, so that hardly any temperature does not make everything infinite.
    logits -= logits.amax(dim=-1, keepdim=True)
    logits /= torch.where(greedy, 1.0, heat)[:, None]
    for row, sequence in zip(logits, sequences, strict=True):
        _keep(row, sequence.sampling)
    # Inverse transform sampling: the first token at which the sum of probabilities passes the noise.
    sums = torch.softmax(logits, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    noise = torch.tensor([sequence.noise() for sequence in sequences], dtype=torch.float64, device=logits.device)
    drawn = torch.searchsorted(sums, (noise * sums[:, -1])[:, None], right=True)[:, 0]
    return torch.where(greedy, logits.argmax(dim=-1), drawn.clamp_(max=logits.shape[1] - 1))


def _adjust(logits: torch.Tensor, sequence: Sequence) -> None:
    """Apply bias, penalties and the ban on stopping too early to a row, in place."""
    wanted, device = sequence.sampling, logits.device
    if wanted.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.tokens)), device=device)
        values = logits[seen]
        values = torch.where(values > 0, values / wanted.repetition_penalty, values * wanted.repetition_penalty)
        logits[seen] = values.clamp_(max=torch.finfo(logits.dtype).max)
    if wanted.presence_penalty or wanted.frequency_penalty:
        used, counts = torch.tensor(sequence.output, dtype=torch.int64, device=device).unique(return_counts=True)
        logits[used] -= (wanted.presence_penalty + wanted.frequency_penalty * counts).to(logits.dtype)
    if wanted.logit_bias:
        where = torch.tensor(list(wanted.logit_bias), device=device)
        logits[where] += torch.tensor(list(wanted.logit_bias.values()), device=device, dtype=logits.dtype)
    if wanted.bad_words:
        # Unlikely beyond words, but not impossible: where nothing else is allowed, something has to be said.
        logits[torch.tensor(_forbidden(sequence), dtype=torch.int64, device=device)] = FORBIDDEN
    if wanted.allowed_token_ids:
        allowed = torch.tensor(wanted.allowed_token_ids, device=device)
        kept = logits[allowed]
        logits.fill_(-torch.inf)
        logits[allowed] = kept
    ended = sequence.guide is not None and sequence.guide.finished
    if len(sequence.output) < wanted.min_tokens and sequence.stop_ids and not ended:
        logits[torch.tensor(sorted(sequence.stop_ids), device=device)] = -torch.inf


def _forbidden(sequence: Sequence) -> list[int]:
    """Tokens that would complete one of the bad words."""
    output = sequence.output
    ends = ((word[:-1], word[-1]) for word in sequence.sampling.bad_words)
    return [last for before, last in ends if not before or tuple(output[-len(before) :]) == before]


def _keep(logits: torch.Tensor, wanted: Sampling) -> None:
    """Mask what top-k, top-p (arXiv 1904.09751) and min-p leave out of a row, in place."""
    if wanted.temperature == 0:
        return
    if 0 < wanted.top_k < logits.shape[0]:
        logits.masked_fill_(logits < logits.topk(wanted.top_k).values[-1], -torch.inf)
    if wanted.top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(dim=-1)
        beyond = probabilities.cumsum(dim=-1) - probabilities >= wanted.top_p
        logits.index_fill_(0, order[beyond], -torch.inf)
    if wanted.min_p > 0:
        probabilities = logits.softmax(dim=-1)
        logits.masked_fill_(probabilities < wanted.min_p * probabilities.max(), -torch.inf)


def _alternatives(logits: torch.Tensor, log_z: torch.Tensor, count: int | None) -> tuple[TopToken, ...]:
    if not count:
        return ()
    best = logits.topk(count)
    return tuple(TopToken(*pair) for pair in zip(best.indices.tolist(), (best.values - log_z).tolist(), strict=True))
