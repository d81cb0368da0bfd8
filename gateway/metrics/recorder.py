"""Records the metrics that `table` declares and writes them in Prometheus' text format.

Series start at 0 as soon as their labels are known, because Prometheus' `increase()` misses a counter that appears at
1. Litestar's Prometheus plugin is not used because it measures HTTP requests only, not tokens, adapters or the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tunery.gateway.engine.messages import Ready, Stats
from tunery.gateway.metrics import table
from tunery.gateway.metrics.lora_info import LoraRequestsInfo
from tunery.gateway.metrics.registry_state import RegistryState
from tunery.gateway.metrics.row import ADAPTER
from tunery.gateway.metrics.started import CODED, DISCONNECTED, STARTED, UNKNOWN_ROUTE
from tunery.gateway.metrics.table import BASE, COMPOSITION, MAX_ADAPTERS, OTHER, TABLE, VLLM_LABELS, Row
from tunery.gateway.metrics.tenants import TenantLabels
from tunery.gateway.metrics.versions import RecentVersions
from tunery.registry.jobs.counts import JobCounts
from tunery.registry.storage.database import Transaction
from tunery.registry.webhooks.outbox import Pending

__all__ = ["DISCONNECTED", "UNKNOWN_ROUTE", "Metrics", "Subject"]

OUTCOMES = ("stop", "length", "cancelled", "overloaded", "engine_restarted", "engine_failed", "artifact_damaged")
"""Outcomes that start at 0 for every adapter; those of rarer errors appear when they happen."""
RESULTS = {"stop": "answered", "length": "answered", "cancelled": "cancelled"}
"""What an outcome means for a tenant or a version; `failed` for all others."""
REFUSED, FAILED = "refused", "failed"
MAX_CODES = 200
"""Codes of errors that have series; beyond it, OTHER."""
FINISHED_REASONS = {"stop": "stop", "length": "length", "cancelled": "abort"}
"""vLLM's finished_reason of an outcome; `error` for all others."""

PrometheusMetric = Any
"""A Counter, Gauge or Histogram, as the row says."""
NO_ADAPTER = ""


class Subject(NamedTuple):
    """Whose a request is: the label of its adapter, its tenant, and the number of the one version that answers it."""

    adapter: str
    tenant: str = ""
    version: int | None = None


class Metrics:
    """The metrics of one gateway, on a Prometheus registry of its own; `tenants` is how many have series.

    `thread` is for what a scrape reads, so that it does not wait behind other work.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, tenants: int = 50) -> None:
        self.registry = registry or CollectorRegistry()
        self.thread = ThreadPoolExecutor(1, "metrics")
        self._tenants, self._versions = TenantLabels(tenants), RecentVersions()
        self._codes = {labels[-1] for row, values in STARTED if row in CODED for labels in values}
        self._own = {row: _prometheus(row, row.name, row.labels, self.registry) for row in TABLE if row.name}
        self._vllm = {
            row: _prometheus(row, row.vllm, [VLLM_LABELS.get(label, label) for label in row.labels], self.registry)
            for row in TABLE
            if row.vllm and row is not table.LORA_REQUESTS_INFO
        }
        self._series: dict[tuple[Row, tuple[str, ...]], list[PrometheusMetric]] = {}
        self._adapters: set[str] = set()
        self._started: set[str] = set()
        self._ready: Ready | None = None
        self._stats: Stats | None = None
        self._last: dict[Row, Mapping[str, float]] = {}
        self._restarts = 0
        self._start(BASE)
        for reason in {*FINISHED_REASONS.values(), "error"}:
            self._vllm[table.FINISHED].labels(BASE, reason)
        for row, values in STARTED:
            for labels in values:
                self._own[row].labels(*labels)
        self.registry.register(LoraRequestsInfo(lambda: (self._ready, self._stats)))

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    # Labels ----------------------------------------------------------------------------------------------------------

    def label(self, adapter: str | None) -> str:
        """The label of a registered adapter; None is the bare base, and COMPOSITION any composition."""
        if adapter is None:
            return BASE
        has_label = adapter == COMPOSITION or adapter in self._adapters or len(self._adapters) < MAX_ADAPTERS
        label = adapter if has_label else OTHER
        if label not in self._started:
            self._start(label)
        if label not in (COMPOSITION, OTHER):
            self._adapters.add(label)
        return label

    def add_adapters(self, adapters: Collection[str]) -> None:
        """Start the series of every adapter; if there are too many for labels of their own, only used ones get one."""
        if len(self._adapters.union(adapters)) <= MAX_ADAPTERS:
            for adapter in adapters:
                self.label(adapter)

    def add_routes(self, routes: Mapping[str, Iterable[str]]) -> None:
        """Start the series of every route's statuses; a client may disconnect from any of them."""
        for route, statuses in routes.items():
            for status in {*statuses, DISCONNECTED}:
                self._own[table.HTTP_REQUESTS].labels(route, status)

    def _start(self, label: str) -> None:
        """Start the series of one value of `adapter` at 0, as each row's `starts` says."""
        self._started.add(label)
        kinds = {"all", "base"} if label == BASE else {"all"} if label == COMPOSITION else {"all", "adapters"}
        for outcome in OUTCOMES:
            self._own[table.REQUESTS].labels(label, outcome)
        for row in TABLE:
            if row.starts in kinds:
                for metrics in (self._own, self._vllm) if label == BASE else (self._own,):
                    if row in metrics:
                        metrics[row].labels(label)

    # Requests --------------------------------------------------------------------------------------------------------

    def set_in_flight(self, count: int) -> None:
        """Show how many requests are in flight."""
        self._set(table.REQUESTS_IN_FLIGHT, count)

    def count_response(self, route: str, status: int, code: str | None = None) -> None:
        """Count an HTTP request by its route's template, its status, and the code of its error if it has one."""
        self._add(table.HTTP_REQUESTS, 1, route, str(status))
        if code is not None:
            self._add(table.HTTP_ERRORS, 1, str(status), self._code(code))

    def count_spans(self, outcome: Literal["exported", "dropped"], count: int) -> None:
        """Count spans that were exported, or could not be; from any thread."""
        self._add(table.TRACE_SPANS, count, outcome)

    def count_refused(self, subject: Subject, *, code: str, count: int) -> None:
        """Count requests that were not admitted, by the code of their error."""
        self._add(table.REQUESTS, count, subject.adapter, code)
        self._add(table.TENANT_REQUESTS, count, self._tenants.count(subject.tenant), REFUSED)

    def count_limit(self, limit: str) -> None:
        """Count what was refused because of a limit, by the limit's name."""
        self._add(table.LIMIT_REFUSALS, 1, limit)

    def count_prompt(self, subject: Subject, *, tokens: int) -> None:
        """Count a request with a prompt of `tokens` that goes to the engine."""
        self._add(table.PROMPT_TOKENS, tokens, subject.adapter)
        self._add(table.TENANT_PROMPT_TOKENS, tokens, self._tenants.count(subject.tenant))
        self._observe(table.REQUEST_PROMPT_TOKENS, tokens, subject.adapter)

    def observe_token(self, subject: Subject, *, first: bool, seconds: float) -> None:
        """Record a token that came `seconds` after the request (the first one) or after the token before."""
        self._observe(table.TIME_TO_FIRST_TOKEN if first else table.TIME_PER_OUTPUT_TOKEN, seconds, subject.adapter)
        if first:
            self._observe(table.TENANT_FIRST_TOKEN, seconds, self._tenants.label(subject.tenant))

    def count_finished(self, subject: Subject, *, outcome: str, tokens: int, seconds: float | None) -> None:
        """Count a request that ended after `seconds`, None where that says nothing. `outcome` is stop, length, cancelled or an error's code."""
        label, tenant = subject.adapter, self._tenants.label(subject.tenant)
        result = RESULTS.get(outcome, FAILED)
        self._add(table.TENANT_REQUESTS, 1, tenant, result)
        self._add(table.TENANT_GENERATED_TOKENS, tokens, tenant)
        if subject.version is not None and label != OTHER:
            self._count_version((label, str(subject.version)), result, tokens, seconds)
        self._add(table.REQUESTS, 1, label, outcome)
        self._add(table.FINISHED, 1, label, FINISHED_REASONS.get(outcome, "error"))
        self._add(table.GENERATED_TOKENS, tokens, label)
        self._observe(table.REQUEST_GENERATED_TOKENS, tokens, label)
        if outcome in ("stop", "length") and seconds is not None:
            self._observe(table.REQUEST_SECONDS, seconds, label)

    def _count_version(self, version: tuple[str, str], result: str, tokens: int, seconds: float | None) -> None:
        is_new, dropped = self._versions.use(version)
        if dropped is not None:
            self._drop_version(dropped)
        if is_new:
            self._own[table.VERSION_REQUEST_SECONDS].labels(*version)
            for each in (*RESULTS.values(), FAILED):
                self._own[table.VERSION_REQUESTS].labels(*version, each)
        self._add(table.VERSION_REQUESTS, 1, *version, result)
        self._add(table.VERSION_GENERATED_TOKENS, tokens, *version)
        if result == "answered" and seconds is not None:
            self._observe(table.VERSION_REQUEST_SECONDS, seconds, *version)

    def _drop_version(self, version: tuple[str, str]) -> None:
        for each in (*RESULTS.values(), FAILED):
            self._remove(table.VERSION_REQUESTS, *version, each)
        for row in (table.VERSION_REQUEST_SECONDS, table.VERSION_GENERATED_TOKENS):
            self._remove(row, *version)

    def _code(self, code: str) -> str:
        """The label of an error's code. Codes are words of ours and of plugins, never a client's."""
        if code in self._codes or len(self._codes) < MAX_CODES:
            self._codes.add(code)
            return code
        return OTHER

    def update_tenants(self, in_flight: Mapping[str, int]) -> None:
        """Show how many requests each tenant has in flight, and give the series to the busiest tenants."""
        for tenant in self._tenants.rank():
            for result in (*RESULTS.values(), FAILED, REFUSED):
                self._remove(table.TENANT_REQUESTS, tenant, result)
            for row in (table.TENANT_PROMPT_TOKENS, table.TENANT_GENERATED_TOKENS, table.TENANT_FIRST_TOKEN):
                self._remove(row, tenant)
        gauge = self._own[table.TENANT_IN_FLIGHT]
        gauge.clear()
        for tenant, count in in_flight.items():
            gauge.labels(self._tenants.label(tenant)).inc(count)

    # The engine ------------------------------------------------------------------------------------------------------

    def update_engine(self, ready: Ready | None, stats: Stats) -> None:
        """Show what the engine reports; its counters start again at zero when its process does."""
        self._ready, self._stats = ready, stats
        for row in TABLE:
            if row.stats is not None:
                value = row.stats(stats)
                self._show(row, value if isinstance(value, Mapping) else {NO_ADAPTER: value})
            elif row.ready is not None and ready is not None:
                self._set(row, row.ready(ready))
        for adapter, seconds in stats.load_seconds:
            self._observe(table.LOAD_SECONDS, seconds, self.label(adapter))

    def update_health(self, *, up: bool, restarts: int, draining: bool = False) -> None:
        """Show whether the engine can answer, how often it was restarted, and whether the gateway shuts down."""
        self._set(table.ENGINE_UP, up)
        self._set(table.DRAINING, draining)
        if not up:
            self._forget_engine()
        self._add(table.ENGINE_RESTARTS, restarts - self._restarts)
        self._restarts = restarts

    def _forget_engine(self) -> None:
        """Reset the gauges of an engine that is gone: it runs nothing and holds nothing."""
        self._ready = self._stats = None
        for row in TABLE:
            if row.kind == "gauge" and row.stats is not None:
                self._show(row, {} if row.labels else {NO_ADAPTER: 0})

    def _show(self, row: Row, values: Mapping[str, float]) -> None:
        """Show a row's values by adapter, or its only value under NO_ADAPTER."""
        if row.kind == "counter":
            self._grow(row, values)
            return
        if row.labels:
            self._own[row].clear()
        for adapter, value in values.items():
            if row.labels:
                self._own[row].labels(self.label(adapter) if row.labels == ADAPTER else adapter).inc(value)
            else:
                self._set(row, value)

    def _grow(self, row: Row, values: Mapping[str, float]) -> None:
        """Add what the engine's counters have grown by; a smaller value means that a new process counts from zero."""
        last = self._last.get(row, {})
        for adapter, value in values.items():
            before = last.get(adapter, 0)
            self._add(row, value - before if value >= before else value, *([self.label(adapter)] if row.labels else []))
        self._last[row] = dict(values)

    # The registry ----------------------------------------------------------------------------------------------------

    def note_transaction(self, transaction: Transaction) -> None:
        """Record a transaction of the registry, from any thread."""
        self._observe(table.REGISTRY_SECONDS, transaction.seconds, transaction.kind)
        if transaction.failure is not None:
            self._add(table.REGISTRY_FAILURES, 1, self._code(transaction.failure))

    def update_registry(self, state: RegistryState) -> None:
        """Show what the registry and its disks say of themselves; what cannot be read now stays as it was."""
        self._set(table.REGISTRY_UP, state.contents is not None)
        self._set(table.REGISTRY_WRITABLE, state.is_writable)
        for place, disk in state.disks.items():
            self._own[table.DISK_FREE].labels(place).set(disk.free)
            self._own[table.DISK_SIZE].labels(place).set(disk.size)
        if state.contents is not None:
            self.update_jobs(state.contents.jobs)
            self.update_batches(state.contents.batches)
            self.update_webhooks(state.contents.webhooks)
            self._update_aliases(state.contents.aliases)

    def _update_aliases(self, aliases: Iterable[tuple[str, str, int]]) -> None:
        gauge = self._own[table.ALIAS_VERSION]
        gauge.clear()
        for adapter, alias, number in aliases:
            if adapter in self._adapters:
                gauge.labels(adapter, alias).set(number)

    def update_keys(self, states: Mapping[str, int], *, age: float) -> None:
        """Show how many API keys are in each state, and how old that knowledge is."""
        for state, count in states.items():
            self._own[table.KEYS].labels(state).set(count)
        self._set(table.KEYS_AGE, age)

    # Jobs and webhooks ------------------------------------------------------------------------------------------------------------

    def update_jobs(self, jobs: JobCounts) -> None:
        """Show what the registry's jobs do."""
        for row, counts in ((table.JOBS, jobs.states), (table.JOBS_FAILED, jobs.failures)):
            self._own[row].clear()
            for label, count in counts.items():
                self._own[row].labels(label).set(count)
        self._set(table.JOB_WAITING_SECONDS, jobs.waiting_seconds)
        self._set(table.JOB_SILENT_SECONDS, jobs.silent_seconds)
        self._set(table.TRAINED_TOKENS, jobs.trained_tokens)
        rows = (table.JOB_DONE_RATIO, table.JOB_STEP_SECONDS, table.JOB_TRAIN_LOSS, table.JOB_EVAL_LOSS)
        for row in rows:
            self._own[row].clear()
        for job in jobs.running:
            for row, value in zip(rows, (job.done, job.step_seconds, job.train_loss, job.eval_loss), strict=True):
                if value is not None:
                    # Its adapter need not have a version yet, so it gets no label for good.
                    self._own[row].labels(job.adapter).set(value)

    def update_batches(self, states: Mapping[str, int]) -> None:
        """Show how many batches are in each state."""
        for state, count in states.items():
            self._own[table.BATCHES].labels(state).set(count)

    def count_batch_request(self, outcome: Literal["completed", "failed"]) -> None:
        """Count a request of a batch that has been answered."""
        self._add(table.BATCH_REQUESTS, 1, outcome)

    def update_webhooks(self, pending: Pending) -> None:
        """Show the webhooks that wait."""
        self._set(table.WEBHOOKS_PENDING, pending.count)
        self._set(table.WEBHOOKS_OLDEST_SECONDS, pending.oldest_seconds)

    def count_webhook(self, outcome: str) -> None:
        """Count an attempt to send a webhook, from any thread."""
        self._add(table.WEBHOOK_ATTEMPTS, 1, outcome)

    # Recording under both names --------------------------------------------------------------------------------------

    def _add(self, row: Row, amount: float, *labels: str) -> None:
        for metric in self._named(row, labels):
            metric.inc(amount)

    def _set(self, row: Row, value: float) -> None:
        for metric in self._named(row, ()):
            metric.set(value)

    def _observe(self, row: Row, value: float, *labels: str) -> None:
        for metric in self._named(row, labels):
            metric.observe(value)

    def _remove(self, row: Row, *labels: str) -> None:
        self._series.pop((row, labels), None)
        with suppress(KeyError):
            self._own[row].remove(*labels)

    def _named(self, row: Row, labels: tuple[str, ...]) -> list[PrometheusMetric]:
        """A series under its names; looking it up once is cheaper than for every token."""
        found = self._series.get((row, labels))
        if found is None:
            named = [metrics[row] for metrics in (self._own, self._vllm) if row in metrics]
            found = [metric.labels(*labels) for metric in named] if labels else named
            self._series[row, labels] = found
        return found


def _prometheus(row: Row, name: str, labels: Collection[str], registry: CollectorRegistry) -> PrometheusMetric:
    if row.kind == "counter":
        return Counter(name, row.help, labels, registry=registry)
    if row.kind == "gauge":
        return Gauge(name, row.help, labels, registry=registry)
    return Histogram(name, row.help, labels, buckets=row.buckets, registry=registry)
