"""The metrics whose values the engine reports; part of the one `table`."""

from __future__ import annotations

from collections import Counter

from tunery.gateway.engine.messages import Stats
from tunery.gateway.metrics.row import ADAPTER, ByAdapter, Row

__all__ = ["REPORTED"]


def _resident_bytes(stats: Stats) -> ByAdapter:
    sizes: Counter[str] = Counter()
    for resident in stats.resident:
        sizes[resident.name] += resident.bytes
    return sizes


def _waiting_by_reason(stats: Stats) -> dict[str, float]:
    resident = {version.name for version in stats.resident}
    loading = sum(count for adapter, count in stats.waiting_adapters.items() if adapter not in resident)
    return {"load": loading, "batch": max(0, stats.waiting - loading)}


REPORTED = (
    Row(
        kind="gauge",
        name="tunery_engine_running",
        vllm="vllm:num_requests_running",
        stats=lambda stats: stats.running,
        help="Requests in the engine's batch.",
    ),
    Row(
        kind="gauge",
        name="tunery_engine_waiting",
        vllm="vllm:num_requests_waiting",
        stats=lambda stats: stats.waiting,
        help="Requests queued in the engine.",
    ),
    Row(
        kind="gauge",
        name="tunery_engine_waiting_by_reason",
        labels=("reason",),
        stats=_waiting_by_reason,
        help="Requests queued in the engine, by what they wait for: load (their adapter is not in memory), or batch.",
    ),
    Row(
        kind="gauge",
        vllm="vllm:kv_cache_usage_perc",
        stats=lambda stats: stats.kv_used,
        help="Fraction of the KV cache's pages in use, 0 to 1.",
    ),
    Row(
        kind="counter",
        name="tunery_preemptions",
        vllm="vllm:num_preemptions",
        stats=lambda stats: stats.preemptions,
        help="Running requests put back into the queue for lack of KV cache.",
    ),
    Row(
        kind="counter",
        name="tunery_prefix_cache_queries",
        vllm="vllm:prefix_cache_queries",
        stats=lambda stats: stats.prefix_queries,
        help="Prompt tokens looked up in the prefix cache.",
    ),
    Row(
        kind="counter",
        name="tunery_prefix_cache_hits",
        vllm="vllm:prefix_cache_hits",
        stats=lambda stats: stats.prefix_hits,
        help="Prompt tokens found in the prefix cache.",
    ),
    Row(
        kind="gauge",
        name="tunery_base_bytes",
        ready=lambda ready: ready.base_bytes,
        help="Memory of the quantized base.",
    ),
    Row(
        kind="gauge",
        name="tunery_adapter_budget_bytes",
        ready=lambda ready: ready.adapter_budget,
        help="Memory that all adapters together may take.",
    ),
    Row(
        kind="gauge",
        name="tunery_resident_adapters",
        stats=lambda stats: len(stats.resident),
        help="Adapter versions in the engine's memory.",
    ),
    Row(
        kind="gauge",
        name="tunery_resident_bytes",
        stats=lambda stats: stats.resident_bytes,
        help="Memory of all resident adapters, including loads in progress.",
    ),
    Row(
        kind="gauge",
        name="tunery_adapter_resident_bytes",
        labels=ADAPTER,
        stats=_resident_bytes,
        help="Memory of one adapter's resident versions.",
    ),
    Row(
        kind="gauge",
        name="tunery_pinned_adapters",
        stats=lambda stats: sum(resident.pinned for resident in stats.resident),
        help="Adapter versions that are never evicted.",
    ),
    Row(
        kind="gauge",
        name="tunery_adapter_ram_bytes",
        stats=lambda stats: stats.ram_bytes,
        help="Main memory that keeps evicted adapters.",
    ),
    Row(
        kind="counter",
        name="tunery_adapter_loads",
        labels=ADAPTER,
        starts="adapters",
        stats=lambda stats: stats.loads,
        help="Adapter loads that finished.",
    ),
    Row(
        kind="counter",
        name="tunery_adapter_load_failures",
        labels=ADAPTER,
        starts="adapters",
        stats=lambda stats: stats.load_failures,
        help="Adapter loads that failed.",
    ),
    Row(
        kind="counter",
        name="tunery_adapter_evictions",
        labels=ADAPTER,
        starts="adapters",
        stats=lambda stats: stats.evictions,
        help="Evictions of the adapter to make room for another.",
    ),
    Row(
        kind="counter",
        name="tunery_adapter_cache_hits",
        labels=ADAPTER,
        starts="adapters",
        stats=lambda stats: stats.hits,
        help="Requests that found their adapter resident.",
    ),
)
