"""What a request does to its own logits before a token is drawn: penalties, biases, bans, and
top-k, top-p and min-p."""

from __future__ import annotations

import torch

from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.gateway.engine.scheduling.sequence import Sequence

__all__ = ["adjust_logits", "truncate_logits"]

BAD_WORD = -1e30
"""The logit of a bad word's last token: less likely than any allowed token, but chosen where
nothing else is allowed."""


def adjust_logits(logits: torch.Tensor, sequence: Sequence) -> None:
    """Apply penalties, biases and bans of `sequence` to its row of logits [vocabulary], in place."""
    params, device = sequence.sampling, logits.device
    _penalize(logits, sequence)
    if params.logit_bias:
        where = torch.tensor(list(params.logit_bias), device=device)
        logits[where] += torch.tensor(list(params.logit_bias.values()), device=device, dtype=logits.dtype)
    if params.bad_words:
        logits[torch.tensor(_bad_word_ends(sequence), dtype=torch.int64, device=device)] = BAD_WORD
    if params.allowed_token_ids:
        allowed = torch.tensor(params.allowed_token_ids, device=device)
        kept = logits[allowed]
        logits.fill_(-torch.inf)
        logits[allowed] = kept
    ended = sequence.guide is not None and sequence.guide.finished
    if len(sequence.output) < params.min_tokens and sequence.stop_ids and not ended:
        logits[torch.tensor(sorted(sequence.stop_ids), device=device)] = -torch.inf


def truncate_logits(logits: torch.Tensor, params: SamplingParams) -> None:
    """Set to -inf what top-k, top-p (arXiv 1904.09751) and min-p exclude from a row [vocabulary],
    in place and in this order."""
    if params.temperature == 0:
        return
    if 0 < params.top_k < logits.shape[0]:
        logits.masked_fill_(logits < logits.topk(params.top_k).values[-1], -torch.inf)
    if params.top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(dim=-1)
        beyond = probabilities.cumsum(dim=-1) - probabilities >= params.top_p
        logits.index_fill_(0, order[beyond], -torch.inf)
    if params.min_p > 0:
        probabilities = logits.softmax(dim=-1)
        logits.masked_fill_(probabilities < params.min_p * probabilities.max(), -torch.inf)


def _penalize(logits: torch.Tensor, sequence: Sequence) -> None:
    """The repetition penalty (arXiv 1909.05858) over prompt and output, presence and frequency
    penalties over the output."""
    params, device = sequence.sampling, logits.device
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.tokens)), device=device)
        values = logits[seen]
        values = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        logits[seen] = values.clamp_(max=torch.finfo(logits.dtype).max)
    if params.presence_penalty or params.frequency_penalty:
        used, counts = torch.tensor(sequence.output, dtype=torch.int64, device=device).unique(return_counts=True)
        logits[used] -= (params.presence_penalty + params.frequency_penalty * counts).to(logits.dtype)


def _bad_word_ends(sequence: Sequence) -> list[int]:
    """Tokens that would complete one of the bad words."""
    output = sequence.output
    ends = ((word[:-1], word[-1]) for word in sequence.sampling.bad_words)
    return [last for before, last in ends if not before or tuple(output[-len(before) :]) == before]
