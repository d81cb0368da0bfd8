"""Fairness between tenants: a virtual token counter (VTC) that decides whose request comes next.

From "Fairness in Serving Large Language Models" (arXiv 2401.00588): every tenant is charged for the tokens that it is
served, divided by its weight, and the tenant that was charged least comes first. A tenant that comes back starts at the
level of those that stayed, so idle time cannot be saved up. Beyond the paper, waiting counts too, so that no request
waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["VirtualTokenCounter"]

PROMPT_TOKEN, OUTPUT_TOKEN = 1.0, 2.0
"""Virtual tokens charged for one token: an output token needs a forward pass of its own."""

AGING_RATE = 20.0
"""Virtual tokens by which one second of waiting moves a request forward."""


class VirtualTokenCounter:
    """One counter for each tenant, in virtual tokens. A tenant that `weights` does not name has weight 1."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights = dict(weights or {})
        self._counters: dict[str, float] = {}

    def weight(self, tenant: str) -> float:
        """A tenant's share of the engine, relative to the other tenants' weights."""
        return self.weights.get(tenant, 1.0)

    def share(self, tenant: str, running: int) -> float:
        """A tenant's share of the batch when so many of its sequences run: their number by its weight."""
        return running / self.weight(tenant)

    def counter(self, tenant: str) -> float:
        """Virtual tokens that a tenant has been charged."""
        return self._counters.get(tenant, 0.0)

    def arrive(self, tenant: str, active: Iterable[str]) -> None:
        """Lift the counter of a tenant that had no request to the lowest of the `active` tenants, which wait or run."""
        level = min((self.counter(other) for other in active), default=0.0)
        self._counters[tenant] = max(self.counter(tenant), level)

    def leave(self, active: Iterable[str]) -> None:
        """A tenant's last request is done; when no tenant is `active` any more, reset all counters."""
        if not any(True for _ in active):
            self._counters.clear()

    def charge(self, tenant: str, *, prompt: int = 0, output: int = 0) -> None:
        """Charge a tenant for the prompt and output tokens it was served."""
        cost = (PROMPT_TOKEN * prompt + OUTPUT_TOKEN * output) / self.weight(tenant)
        self._counters[tenant] = self.counter(tenant) + cost

    def priority(self, tenant: str, waited: float, *, uncharged: int = 0) -> float:
        """The priority of a tenant's request that has waited `waited` seconds; the lowest value comes first.

        `uncharged` are prompt tokens of the tenant's running requests, for which it will be charged before this one.
        """
        return self.counter(tenant) + PROMPT_TOKEN * uncharged / self.weight(tenant) - AGING_RATE * waited
