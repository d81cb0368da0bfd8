"""Which metrics every process shows alike, such as the engine's and the registry's: they must not be added up."""

from __future__ import annotations

from functools import cache

from tunery.gateway.metrics import table
from tunery.gateway.metrics.table import TABLE

__all__ = ["shared_names"]

OF_THE_ENGINE = frozenset({table.LOAD_SECONDS, table.ENGINE_RESTARTS})
"""Counters and histograms that each process keeps of the one engine, besides those that its reports say."""
OF_EACH_PROCESS = frozenset({table.REQUESTS_IN_FLIGHT, table.TENANT_IN_FLIGHT})
"""Gauges of what each process does."""


@cache
def shared_names() -> frozenset[str]:
    """The names of their families."""
    rows = [
        row
        for row in TABLE
        if row in OF_THE_ENGINE or row.stats is not None or (row.kind == "gauge" and row not in OF_EACH_PROCESS)
    ]
    return frozenset(name for row in rows for name in (row.name, row.vllm) if name)
