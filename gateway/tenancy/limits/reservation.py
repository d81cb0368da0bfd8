"""What one request may use at most, and what it has used: reserved before it begins, settled when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunery.gateway.tenancy.limits.interface import Counters, Taken

__all__ = ["Reservation"]


class Reservation:
    """What was taken for a request of at most `tokens` tokens, until `settle`, which also calls `release`."""

    def __init__(
        self, counters: Counters, taken: Sequence[Taken], *, tokens: int, release: Callable[[], None] = lambda: None
    ) -> None:
        self._counters, self._taken, self._tokens, self._release = counters, taken, tokens, release
        self._settled = False
        self.spent = 0
        """Tokens that were used, to be set before `settle`."""
        self.begun = False
        """Whether the request came as far as the engine; one that did not counts as none."""

    def settle(self) -> None:
        """Give back what was not used. Once is enough, and more do no harm."""
        if self._settled:
            return
        self._settled = True
        for taken in self._taken:
            if back := self._unused(taken):
                self._counters.give_back(taken, back)
        self._release()

    def _unused(self, taken: Taken) -> int:
        amount = taken.want.amount
        if taken.want.resource == "requests":
            return 0 if self.begun else amount
        if taken.want.resource == "tokens":
            return min(max(self._tokens - self.spent, 0), amount)
        return amount
