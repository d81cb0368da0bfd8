"""What is in memory, and what comes and goes."""

from __future__ import annotations

from dashboards.expressions import ADAPTER, INSTANCE, OURS, TOP, quantiles, rate, share, top, total
from dashboards.panels import Dashboard, Panel, Query, one, stat

__all__ = ["ADAPTERS"]

ADAPTERS = Dashboard(
    "tunery-adapters",
    "Tunery: adapters",
    "What is in memory, and what comes and goes.",
    (INSTANCE, ADAPTER),
    {
        "In memory": (
            stat("Versions in memory", "short", "Resident in all engines together.", total("tunery_resident_adapters")),
            stat("Pinned", "short", "Never evicted.", total("tunery_pinned_adapters")),
            stat(
                "Budget in use",
                "percentunit",
                "Resident bytes against adapter_budget_mb; full is normal, evictions tell whether it is too small.",
                share(total("tunery_resident_bytes"), f"({total('tunery_adapter_budget_bytes')} > 0)"),
            ),
            stat("Base", "bytes", "Memory of the quantized base.", total("tunery_base_bytes", how="max")),
            stat(
                "Cache hits, 1 h",
                "percentunit",
                "Requests that found their adapter in memory.",
                f"sum (increase(tunery_adapter_cache_hits_total{{{OURS}}}[1h])) / (sum (increase(tunery_adapter_cache_hits_total{{{OURS}}}[1h])) + sum (increase(tunery_adapter_loads_total{{{OURS}}}[1h])))",
                (0.5, 0.9),
                below=True,
            ),
            stat(
                "Failed loads, 1 h",
                "short",
                "Damaged, unfit or too large.",
                f"sum (increase(tunery_adapter_load_failures_total{{{OURS}}}[1h]))",
                (1, 5),
            ),
        ),
        "Memory": (
            Panel(
                "Resident bytes against the budget",
                "bytes",
                "Loads in progress included; evicted adapters may wait in main memory (adapter_ram_mb).",
                (
                    Query("resident", total("tunery_resident_bytes")),
                    Query("budget", total("tunery_adapter_budget_bytes")),
                    Query("evicted, in main memory", total("tunery_adapter_ram_bytes")),
                ),
            ),
            Panel(
                "Resident bytes by adapter",
                "bytes",
                f"The {TOP} largest.",
                one("{{adapter}}", top(total("tunery_adapter_resident_bytes", OURS, by="adapter"))),
            ),
            Panel(
                "Versions in memory",
                "short",
                "By engine.",
                one("{{instance}}", total("tunery_resident_adapters", by="instance")),
            ),
        ),
        "Coming and going": (
            Panel(
                "Cache hits and loads",
                "ops",
                "A hit needs no load.",
                (
                    Query("hits", rate("tunery_adapter_cache_hits_total", OURS)),
                    Query("loads", rate("tunery_adapter_loads_total", OURS)),
                ),
            ),
            Panel(
                "Evictions by adapter",
                "ops",
                f"The {TOP} with the most: the working set does not fit.",
                one("{{adapter}}", top(rate("tunery_adapter_evictions_total", OURS, by="adapter"))),
                (0.5, 1),
            ),
            Panel(
                "Failed loads by adapter",
                "ops",
                f"The {TOP} with the most; `tunery adapters verify ADAPTER` says why.",
                one("{{adapter}}", top(rate("tunery_adapter_load_failures_total", OURS, by="adapter"))),
                (0.01, 0.1),
            ),
            Panel(
                "Load time, 1 h",
                "s",
                "From disk into memory.",
                quantiles("tunery_adapter_load_seconds", OURS, window="1h"),
                (1, 5),
            ),
            Panel(
                "Damaged files met",
                "ops",
                "Requests whose adapter does not match its digest; it is not served until it is repaired.",
                one(
                    "{{adapter}}",
                    rate("tunery_requests_total", OURS, by="adapter", where='outcome="artifact_damaged"'),
                ),
                (0.001, 0.01),
            ),
        ),
    },
)
