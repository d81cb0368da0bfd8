"""Choosing tokens: one row's choice and probability do not depend on how many rows there are."""

from __future__ import annotations

import torch

from tests.gateway.engine.peft_oracle import request
from tunery.gateway.engine.sampler import sample
from tunery.gateway.engine.sequence import Sequence


def sequence(**sampling: object) -> Sequence:
    return Sequence(request("r", (1, 2), **sampling), eos_ids=frozenset(), arrived=0.0)


def test_a_rows_log_probability_has_the_same_bits_in_any_company() -> None:
    # As wide as a real vocabulary, and many rows: a sum over all rows at once differed in the last bit in one row of forty.
    logits = torch.randn(200, 49152, generator=torch.Generator().manual_seed(0)) * 4 + 3
    together = sample(logits, [sequence() for _ in range(200)])
    alone = [sample(logits[i : i + 1], [sequence()])[0] for i in range(200)]
    assert alone == together
