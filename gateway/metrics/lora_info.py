"""The metric by which Kubernetes' inference gateway routes requests to where their adapter is in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tunery.gateway.engine.messages import Ready, Stats
from tunery.gateway.metrics import table

__all__ = ["LoraRequestsInfo"]


class LoraRequestsInfo(Collector):
    """`vllm:lora_requests_info`: a single series whose labels list the adapters and whose value is the time of the
    scrape.

    Kubernetes' inference gateway routes by it. Resident adapters count as running, since a request for one needs no
    load.
    """

    def __init__(self, engine: Callable[[], tuple[Ready | None, Stats | None]]) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """One sample, or none while there is no engine."""
        ready, stats = self._engine()
        row = table.LORA_REQUESTS_INFO
        family = GaugeMetricFamily(row.vllm, row.help, labels=row.labels)
        if ready is not None and stats is not None:
            running = sorted({resident.name for resident in stats.resident} | set(stats.running_adapters))
            waiting = sorted(set(stats.waiting_adapters) - set(running))
            slots = max(len(running), ready.max_batch)
            family.add_metric((str(slots), ",".join(running), ",".join(waiting)), time.time())
        return (family,)
