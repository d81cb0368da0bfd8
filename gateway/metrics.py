"""Owns every metric: names, labels, buckets. Refuses labels whose values a client can make up.

`adapter` is a registered adapter's `tenant/name`, the word `base`, `mix` for every composition, of which there is no end, or
`other` for whatever came after the first MAX_ADAPTERS. Series begin at 0 as soon as their labels are known, since Prometheus does not see
a counter grow that appears at 1. The `vllm:` names mirror vLLM's, so that dashboards and routers made for it work; see docs/metrics.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tunery.gateway.engine.messages import Ready, Stats

__all__ = ["BASE", "COMPOSITION", "MAX_ADAPTERS", "OTHER", "Metrics"]

BASE, COMPOSITION, OTHER = "base", "mix", "other"
MAX_ADAPTERS = 200

FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0)
PER_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
OUTCOMES = ("stop", "length", "cancelled", "overloaded", "engine_restarted", "engine_failed")
"""Outcomes that every adapter has from the start; the codes of rarer errors come when they do."""
LEFT, NOT_FOUND, NOT_ALLOWED = "499", "404", "405"
UNKNOWN = "unknown"
"""The route of requests to nowhere."""
_VLLM_REASONS = {"stop": "stop", "length": "length", "cancelled": "abort"}

LOADING = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one gateway, on a registry of its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._adapters: set[str] = set()
        self._begun: set[str] = set()
        self._ready: Ready | None = None
        self._stats: Stats | None = None
        self._counted: dict[str, dict[str, int]] = {}
        self._totals: dict[str, int] = {}
        self._restarts = 0
        self._declare_requests()
        self._declare_residency()
        self._declare_vllm()
        self._declare_scheduling()
        self._begin_base()
        for status in (NOT_FOUND, NOT_ALLOWED):
            self.http.labels(UNKNOWN, status)
        self.registry.register(_LoraInfo(lambda: (self._ready, self._stats)))

    def label(self, adapter: str | None) -> str:
        """The label of a registered adapter; None is the bare base, and COMPOSITION any composition."""
        if adapter is None:
            return BASE
        known = adapter == COMPOSITION or adapter in self._adapters or len(self._adapters) < MAX_ADAPTERS
        label = adapter if known else OTHER
        if label not in self._begun:
            self._begin(label)
        if label not in (COMPOSITION, OTHER):
            self._adapters.add(label)
        return label

    def know(self, adapters: Collection[str]) -> None:
        """Begin the series of every adapter, unless there are more than get a label of their own: then those that are used do."""
        if len(self._adapters.union(adapters)) <= MAX_ADAPTERS:
            for adapter in adapters:
                self.label(adapter)

    def know_routes(self, routes: Mapping[str, Iterable[str]]) -> None:
        """Begin the series of every route's statuses; a client may leave any of them."""
        for route, statuses in routes.items():
            for status in {*statuses, LEFT}:
                self.http.labels(route, status)

    def _begin(self, label: str) -> None:
        self._begun.add(label)
        for outcome in OUTCOMES:
            self.requests.labels(label, outcome)
        for counter in (self.prompt_tokens, self.generated_tokens):
            counter.labels(label)
        if label not in (BASE, COMPOSITION):
            for counter in self._residency_counters.values():
                counter.labels(label)
            self.load_seconds.labels(label)

    def _begin_base(self) -> None:
        """What every server has from the start."""
        self._begin(BASE)
        for timed in (self.first_token, self.per_token, self.whole, self.vllm_first, self.vllm_gap, self.vllm_whole):
            timed.labels(BASE)
        for size in (self.vllm_prompt_size, self.vllm_output_size):
            size.labels(BASE)
        for counter in (self.vllm_prompt, self.vllm_generated):
            counter.labels(BASE)
        for reason in {*_VLLM_REASONS.values(), "error"}:
            self.vllm_success.labels(BASE, reason)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def take(self, ready: Ready | None, stats: Stats) -> None:
        """Show a new state of the engine; its counters start at zero again when it does."""
        self._ready, self._stats = ready, stats
        self.running.set(stats.running)
        self.waiting.set(stats.waiting)
        self.vllm_running.set(stats.running)
        self.vllm_waiting.set(stats.waiting)
        self.vllm_kv_usage.set(stats.kv_used)
        self.resident_adapters.set(len(stats.resident))
        self.resident_bytes_total.set(stats.resident_bytes)
        self.pinned_adapters.set(sum(resident.pinned for resident in stats.resident))
        self.adapter_ram.set(stats.ram_bytes)
        self._show_resident(stats)
        self._count_totals(stats)
        for name, now in (
            ("loads", stats.loads),
            ("load_failures", stats.load_failures),
            ("evictions", stats.evictions),
            ("hits", stats.hits),
        ):
            self._count(name, now)
        for adapter, seconds in stats.load_seconds:
            self.load_seconds.labels(self.label(adapter)).observe(seconds)
        if ready is not None:
            self.base_bytes.set(ready.base_bytes)
            self.adapter_budget.set(ready.adapter_budget)

    def prompt(self, label: str, *, tokens: int) -> None:
        """A request with a prompt of `tokens` goes to the engine."""
        self.prompt_tokens.labels(label).inc(tokens)
        self.vllm_prompt.labels(label).inc(tokens)
        self.vllm_prompt_size.labels(label).observe(tokens)

    def token(self, label: str, *, first: bool, seconds: float) -> None:
        """A token came, `seconds` after the request (the first) or after the token before."""
        ours, theirs = (self.first_token, self.vllm_first) if first else (self.per_token, self.vllm_gap)
        ours.labels(label).observe(seconds)
        theirs.labels(label).observe(seconds)

    def finished(self, label: str, *, outcome: str, tokens: int, seconds: float) -> None:
        """A request ended; `outcome` is stop, length, cancelled or the code of an error, `seconds` from arrival to last token."""
        self.requests.labels(label, outcome).inc()
        self.generated_tokens.labels(label).inc(tokens)
        self.vllm_generated.labels(label).inc(tokens)
        self.vllm_output_size.labels(label).observe(tokens)
        self.vllm_success.labels(label, _VLLM_REASONS.get(outcome, "error")).inc()
        if outcome in ("stop", "length"):
            self.whole.labels(label).observe(seconds)
            self.vllm_whole.labels(label).observe(seconds)

    def watch(self, *, up: bool, restarts: int) -> None:
        """Show whether the engine can answer and how often it had to be started again."""
        self.engine_up.set(up)
        if not up:
            self._forget_engine()
        self.engine_restarts.inc(restarts - self._restarts)
        self._restarts = restarts

    def _forget_engine(self) -> None:
        """An engine that is gone runs nothing and holds nothing, whatever it said last."""
        self._ready = self._stats = None
        for gauge in (
            self.running,
            self.waiting,
            self.vllm_running,
            self.vllm_waiting,
            self.vllm_kv_usage,
            self.resident_adapters,
            self.resident_bytes_total,
            self.pinned_adapters,
            self.adapter_ram,
        ):
            gauge.set(0)
        self.resident_bytes.clear()

    def _show_resident(self, stats: Stats) -> None:
        sizes: dict[str, int] = {}
        for resident in stats.resident:
            label = self.label(resident.name)
            sizes[label] = sizes.get(label, 0) + resident.bytes
        self.resident_bytes.clear()
        for label, size in sizes.items():
            self.resident_bytes.labels(label).set(size)

    def _count(self, name: str, now: Mapping[str, int]) -> None:
        """Add what an engine's counter has grown by; a smaller value means a new engine."""
        before = self._counted.get(name, {})
        for adapter, value in now.items():
            last = before.get(adapter, 0)
            self._residency_counters[name].labels(self.label(adapter)).inc(value - last if value >= last else value)
        self._counted[name] = dict(now)

    def _count_totals(self, stats: Stats) -> None:
        """The same for counters without labels."""
        for name, counters in self._engine_counters.items():
            now, last = getattr(stats, name), self._totals.get(name, 0)
            for counter in counters:
                counter.inc(now - last if now >= last else now)
            self._totals[name] = now

    def _declare_requests(self) -> None:
        label = ("adapter",)
        self.requests = Counter(
            "tunery_requests", "Inference requests by outcome.", ("adapter", "outcome"), registry=self.registry
        )
        self.prompt_tokens = Counter("tunery_prompt_tokens", "Prompt tokens read.", label, registry=self.registry)
        self.generated_tokens = Counter("tunery_generated_tokens", "Tokens generated.", label, registry=self.registry)
        self.first_token = Histogram(
            "tunery_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            label,
            buckets=FIRST_TOKEN,
            registry=self.registry,
        )
        self.per_token = Histogram(
            "tunery_time_per_output_token_seconds",
            "Between one token of a request and the next.",
            label,
            buckets=PER_TOKEN,
            registry=self.registry,
        )
        self.whole = Histogram(
            "tunery_request_seconds",
            "From a request's arrival to its last token.",
            label,
            buckets=WHOLE,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "tunery_requests_in_flight", "Inference requests accepted and not yet answered.", registry=self.registry
        )
        self.http = Counter(
            "tunery_http_requests", "HTTP requests by route and status.", ("route", "status"), registry=self.registry
        )

    def _declare_residency(self) -> None:
        label = ("adapter",)
        self.running = Gauge("tunery_engine_running", "Requests in the engine's batch.", registry=self.registry)
        self.waiting = Gauge("tunery_engine_waiting", "Requests queued in the engine.", registry=self.registry)
        self.engine_up = Gauge("tunery_engine_up", "1 while the engine can answer.", registry=self.registry)
        self.engine_restarts = Counter(
            "tunery_engine_restarts", "Times the engine's process had to be started again.", registry=self.registry
        )
        self.base_bytes = Gauge("tunery_base_bytes", "Memory of the quantized base.", registry=self.registry)
        self.adapter_budget = Gauge(
            "tunery_adapter_budget_bytes", "Memory that adapters may take in all.", registry=self.registry
        )
        self.resident_adapters = Gauge(
            "tunery_resident_adapters", "Versions in the engine's memory.", registry=self.registry
        )
        self.resident_bytes_total = Gauge(
            "tunery_resident_bytes",
            "Memory of all resident adapters, loads under way included.",
            registry=self.registry,
        )
        self.pinned_adapters = Gauge(
            "tunery_pinned_adapters", "Versions that stay in memory whatever needs room.", registry=self.registry
        )
        self.adapter_ram = Gauge(
            "tunery_adapter_ram_bytes", "Main memory that evicted adapters are kept in.", registry=self.registry
        )
        self.resident_bytes = Gauge(
            "tunery_adapter_resident_bytes", "Memory of one adapter's resident versions.", label, registry=self.registry
        )
        self.load_seconds = Histogram(
            "tunery_adapter_load_seconds",
            "From disk to memory.",
            label,
            buckets=LOADING,
            registry=self.registry,
        )
        self._residency_counters = {
            "loads": Counter("tunery_adapter_loads", "Loads finished.", label, registry=self.registry),
            "load_failures": Counter("tunery_adapter_load_failures", "Loads failed.", label, registry=self.registry),
            "evictions": Counter("tunery_adapter_evictions", "Evictions for room.", label, registry=self.registry),
            "hits": Counter(
                "tunery_adapter_cache_hits",
                "Requests that found their adapter resident.",
                label,
                registry=self.registry,
            ),
        }

    def _declare_scheduling(self) -> None:
        """Our name and vLLM's for each of the engine's own counters, by the field of Stats."""

        def twice(ours: str, theirs: str, what: str) -> tuple[Counter, Counter]:
            return Counter(ours, what, registry=self.registry), Counter(theirs, what, registry=self.registry)

        self._engine_counters = {
            "preemptions": twice(
                "tunery_preemptions",
                "vllm:num_preemptions",
                "Running requests put back into the queue for want of room.",
            ),
            "prefix_queries": twice(
                "tunery_prefix_cache_queries",
                "vllm:prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache.",
            ),
            "prefix_hits": twice(
                "tunery_prefix_cache_hits", "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache."
            ),
        }

    def _declare_vllm(self) -> None:
        one = ("model_name",)
        self.vllm_running = Gauge("vllm:num_requests_running", "Requests in the batch.", registry=self.registry)
        self.vllm_waiting = Gauge("vllm:num_requests_waiting", "Requests queued.", registry=self.registry)
        self.vllm_kv_usage = Gauge("vllm:kv_cache_usage_perc", "Cache pages in use, 0 to 1.", registry=self.registry)
        self.vllm_prompt = Counter("vllm:prompt_tokens", "Prompt tokens read.", one, registry=self.registry)
        self.vllm_generated = Counter("vllm:generation_tokens", "Tokens generated.", one, registry=self.registry)
        self.vllm_success = Counter(
            "vllm:request_success", "Finished requests.", ("model_name", "finished_reason"), registry=self.registry
        )
        self.vllm_first = Histogram(
            "vllm:time_to_first_token_seconds", "Time to first token.", one, buckets=FIRST_TOKEN, registry=self.registry
        )
        self.vllm_gap = Histogram(
            "vllm:inter_token_latency_seconds", "Between tokens.", one, buckets=PER_TOKEN, registry=self.registry
        )
        self.vllm_whole = Histogram(
            "vllm:e2e_request_latency_seconds", "Whole requests.", one, buckets=WHOLE, registry=self.registry
        )
        self.vllm_prompt_size = Histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a request.", one, buckets=TOKENS, registry=self.registry
        )
        self.vllm_output_size = Histogram(
            "vllm:request_generation_tokens",
            "Generated tokens of a request.",
            one,
            buckets=TOKENS,
            registry=self.registry,
        )


class _LoraInfo(Collector):
    """`vllm:lora_requests_info`: one series at a time, its value the time it was read, its labels who runs and who waits.

    What Kubernetes' inference gateway routes by. Running lists the resident adapters, since going there costs no load.
    """

    def __init__(self, state: Callable[[], tuple[Ready | None, Stats | None]]) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """One sample."""
        ready, stats = self._state()
        names = ("max_lora", "running_lora_adapters", "waiting_lora_adapters")
        family = GaugeMetricFamily("vllm:lora_requests_info", "Adapters that run and that wait.", labels=names)
        if ready is not None and stats is not None:
            running = sorted({resident.name for resident in stats.resident} | set(stats.running_adapters))
            waiting = sorted(set(stats.waiting_adapters) - set(running))
            room = max(len(running), ready.max_batch)
            family.add_metric((str(room), ",".join(running), ",".join(waiting)), time.time())
        return (family,)
