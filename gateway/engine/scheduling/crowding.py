"""A tenant's first token does not wait for another tenant's crowd: a short prompt runs in a forward pass without it.

Where a forward pass takes longer the more tokens it has, a prompt that takes 20 ms alone takes the time of a full pass
beside a tenant that fills the batch. So the sequences of tenants with larger shares of the batch sit that pass out: it
is short, and they take part in every second pass at least.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Rows

from tunery.gateway.engine.scheduling.fairness import VirtualTokenCounter
from tunery.gateway.engine.scheduling.sequence import Sequence

__all__ = ["Crowding"]

MAX_TOKENS_PER_CROWD_TOKEN = 4
"""How long a pass without the crowd may be, in tokens for each that the crowd would have had. A longer prompt takes
much longer than the crowd's tokens, so that it gains little, and the crowd would lose much."""


class Crowding:
    """Chooses who takes part in each forward pass, which computes `token_budget` tokens at most.

    A crowd is at least `min_crowd` tokens: those that make a forward pass much longer. With 0 nobody sits a pass out.
    """

    def __init__(self, fairness: VirtualTokenCounter, *, token_budget: int, min_crowd: int) -> None:
        self._fairness = fairness
        self._token_budget = token_budget
        self._min_crowd = min_crowd
        self._sat_out = False
        """Whether a crowd sat out the last forward pass."""

    def participants(self, running: Rows[Sequence]) -> Rows[Sequence]:
        """Those of the running sequences that may have tokens in the next forward pass."""
        chosen = running if self._sat_out or not self._min_crowd else self._without_crowd(running)
        self._sat_out = chosen is not running
        return chosen

    def _without_crowd(self, running: Rows[Sequence]) -> Rows[Sequence]:
        """The sequences of the tenant with the smallest share of the batch among those that wait for a first token, and
        of all with no larger ones; or all sequences where the others are no crowd. The background is left out with the
        crowd. A share is the number of running sequences divided by the tenant's weight.
        """
        interactive = [s for s in running if not s.background]
        prompts = [s for s in interactive if not s.answering]
        if not prompts:
            return running
        count = Counter(s.tenant for s in interactive)
        share = {tenant: self._fairness.share(tenant, number) for tenant, number in count.items()}
        smallest = min(share[s.tenant] for s in prompts)
        few = [s for s in interactive if share[s.tenant] <= smallest]
        crowd = min(_uncomputed(interactive) - _uncomputed(few), self._token_budget)
        short = _uncomputed(few) <= MAX_TOKENS_PER_CROWD_TOKEN * crowd
        return few if short and crowd >= self._min_crowd else running


def _uncomputed(sequences: Iterable[Sequence]) -> int:
    return sum(s.uncomputed for s in sequences)
