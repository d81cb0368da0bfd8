"""Owns who has had how much of the engine, and so whose turn it is; refuses to know what is done in a turn.

The virtual token counter of "Fairness in Serving Large Language Models" (arXiv 2401.00588): every tenant pays for the tokens it is
served, divided by its weight, and the one that has paid least comes first. Whoever was away comes back at the level of those who
stayed, so that nobody saves up. Waiting counts too, so that no request waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["VirtualTokenCounter"]

PROMPT_TOKEN, OUTPUT_TOKEN = 1.0, 2.0
"""What a token costs: an output token takes a step of its own."""

AGEING = 20.0
"""Tokens by which a second of waiting brings a request forward."""


class VirtualTokenCounter:
    """The counters, in virtual tokens. A tenant without an entry in `weights` has weight 1."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        self._paid: dict[str, float] = {}

    def weight(self, tenant: str) -> float:
        """A tenant's share in proportion to the others'."""
        return self._weights.get(tenant, 1.0)

    def arrive(self, tenant: str, active: Iterable[str]) -> None:
        """A tenant that was away has a request; `active` are the tenants that wait or run."""
        level = min((self._paid.get(other, 0.0) for other in active), default=0.0)
        self._paid[tenant] = max(self._paid.get(tenant, 0.0), level)

    def leave(self, tenant: str, active: Iterable[str]) -> None:
        """A tenant's last request is done. When nobody is left, the counters start anew."""
        if not any(True for _ in active):
            self._paid.clear()

    def charge(self, tenant: str, *, prompt: int = 0, output: int = 0) -> None:
        """A tenant is served tokens."""
        cost = (PROMPT_TOKEN * prompt + OUTPUT_TOKEN * output) / self.weight(tenant)
        self._paid[tenant] = self._paid.get(tenant, 0.0) + cost

    def paid(self, tenant: str) -> float:
        """What a tenant has paid."""
        return self._paid.get(tenant, 0.0)

    def turn(self, tenant: str, waited: float, *, ahead: int = 0) -> float:
        """The place in the order of a request that has waited so many seconds; the smallest comes first.

        `ahead` are prompt tokens for which the tenant will pay before it comes to this request.
        """
        return self.paid(tenant) + PROMPT_TOKEN * ahead / self.weight(tenant) - AGEING * waited
