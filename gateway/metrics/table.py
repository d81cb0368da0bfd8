"""Declares every metric: its own name, vLLM's name for the same thing, kind, labels, buckets and meaning.

vLLM's names let dashboards and routers made for it work unchanged. No label takes values that a client can make up:
`adapter` is a registered adapter's `tenant/name` or one of BASE, COMPOSITION and OTHER, and vLLM's metrics call it
`model_name`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import msgspec

from tunery.gateway.engine.messages import Ready, Stats

__all__ = [
    "BASE",
    "MAX_ADAPTERS",
    "COMPOSITION",
    "OTHER",
    "TABLE",
    "VLLM_LABELS",
    "ExposedMetric",
    "Row",
    "exposed_metrics",
]

BASE, COMPOSITION, OTHER = "base", "mix", "other"
"""Values of the label `adapter`: the bare base, any composition, and all adapters beyond MAX_ADAPTERS."""
MAX_ADAPTERS = 200

VLLM_LABELS = {"adapter": "model_name", "outcome": "finished_reason"}
"""vLLM's names for labels; others keep their name."""

ADAPTER = ("adapter",)
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0)
NEXT_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
WHOLE_REQUEST = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
LOADING = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TOKEN_COUNT = (1, 4, 16, 64, 256, 1024, 4096, 16384)

Kind = Literal["counter", "gauge", "histogram"]
ByAdapter = Mapping[str, float]


class Row(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """One metric, served under its own `name`, under `vllm`'s, or under both; counters without their suffix `_total`.

    `starts` says which values of `adapter` have a series at 0 before anything is recorded: all, those of registered
    adapters, or only the base (which is all that vLLM's name ever starts with). `stats` and `ready` take a value from
    what the engine reports.
    """

    kind: Kind
    help: str
    name: str = ""
    vllm: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    starts: Literal["all", "adapters", "base"] | None = None
    stats: Callable[[Stats], float | ByAdapter] | None = None
    ready: Callable[[Ready], float] | None = None


def _resident_bytes(stats: Stats) -> ByAdapter:
    sizes: Counter[str] = Counter()
    for resident in stats.resident:
        sizes[resident.name] += resident.bytes
    return sizes


# -- requests --------------------------------------------------------------------------------------------------------

REQUESTS = Row(
    kind="counter",
    name="tunery_requests",
    labels=("adapter", "outcome"),
    help="Inference requests by outcome.",
)
FINISHED = Row(
    kind="counter",
    vllm="vllm:request_success",
    labels=("adapter", "outcome"),
    help="Finished requests.",
)
LIMIT_REFUSALS = Row(
    kind="counter",
    name="tunery_limit_refusals",
    labels=("limit",),
    help="What was refused because a tenant or key has reached the limit.",
)
PROMPT_TOKENS = Row(
    kind="counter",
    name="tunery_prompt_tokens",
    vllm="vllm:prompt_tokens",
    labels=ADAPTER,
    starts="all",
    help="Prompt tokens read.",
)
GENERATED_TOKENS = Row(
    kind="counter",
    name="tunery_generated_tokens",
    vllm="vllm:generation_tokens",
    labels=ADAPTER,
    starts="all",
    help="Tokens generated.",
)
TIME_TO_FIRST_TOKEN = Row(
    kind="histogram",
    name="tunery_time_to_first_token_seconds",
    vllm="vllm:time_to_first_token_seconds",
    labels=ADAPTER,
    buckets=FIRST_TOKEN,
    starts="base",
    help="From a request's arrival to its first token.",
)
TIME_PER_OUTPUT_TOKEN = Row(
    kind="histogram",
    name="tunery_time_per_output_token_seconds",
    vllm="vllm:inter_token_latency_seconds",
    labels=ADAPTER,
    buckets=NEXT_TOKEN,
    starts="base",
    help="Between one token of a request and the next.",
)
REQUEST_SECONDS = Row(
    kind="histogram",
    name="tunery_request_seconds",
    vllm="vllm:e2e_request_latency_seconds",
    labels=ADAPTER,
    buckets=WHOLE_REQUEST,
    starts="base",
    help="From a request's arrival to its last token.",
)
REQUEST_PROMPT_TOKENS = Row(
    kind="histogram",
    vllm="vllm:request_prompt_tokens",
    labels=ADAPTER,
    buckets=TOKEN_COUNT,
    starts="base",
    help="Prompt tokens of a request.",
)
REQUEST_GENERATED_TOKENS = Row(
    kind="histogram",
    vllm="vllm:request_generation_tokens",
    labels=ADAPTER,
    buckets=TOKEN_COUNT,
    starts="base",
    help="Generated tokens of a request.",
)
REQUESTS_IN_FLIGHT = Row(
    kind="gauge",
    name="tunery_requests_in_flight",
    help="Inference requests accepted and not yet answered.",
)
HTTP_REQUESTS = Row(
    kind="counter",
    name="tunery_http_requests",
    labels=("route", "status"),
    help="HTTP requests by route and status.",
)

# -- the engine's process ---------------------------------------------------------------------------------------------

ENGINE_UP = Row(kind="gauge", name="tunery_engine_up", help="1 while the engine can answer.")
ENGINE_RESTARTS = Row(
    kind="counter",
    name="tunery_engine_restarts",
    help="Times the engine process was restarted.",
)
LOAD_SECONDS = Row(
    kind="histogram",
    name="tunery_adapter_load_seconds",
    labels=ADAPTER,
    buckets=LOADING,
    starts="adapters",
    help="Time to load an adapter from disk into memory.",
)
LORA_REQUESTS_INFO = Row(
    kind="gauge",
    vllm="vllm:lora_requests_info",
    labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
    help="Adapters in memory, and adapters with requests that wait for a load; the value is the time of the scrape.",
)

# -- what the registry has -------------------------------------------------------------------------------------------

JOBS = Row(
    kind="gauge",
    name="tunery_jobs",
    labels=("state",),
    help="Training jobs by state, on all gateways and workers of the registry.",
)
JOBS_FAILED = Row(
    kind="gauge",
    name="tunery_jobs_failed",
    labels=("code",),
    help="Training jobs that failed, by the code of their error.",
)
JOB_WAITING_SECONDS = Row(
    kind="gauge",
    name="tunery_job_waiting_seconds",
    help="How long the oldest job in the queue has waited; 0 when none waits.",
)
TRAINED_TOKENS = Row(
    kind="gauge",
    name="tunery_trained_tokens",
    help="Tokens that all training jobs of the registry have trained on.",
)
JOB_DONE_RATIO = Row(
    kind="gauge",
    name="tunery_job_done_ratio",
    labels=ADAPTER,
    help="The share of a running job's steps that are done.",
)
JOB_STEP_SECONDS = Row(
    kind="gauge",
    name="tunery_job_step_seconds",
    labels=ADAPTER,
    help="Seconds of a running job's steps, on average.",
)
JOB_TRAIN_LOSS = Row(
    kind="gauge",
    name="tunery_job_train_loss",
    labels=ADAPTER,
    help="The training loss of a running job's last step.",
)
JOB_EVAL_LOSS = Row(
    kind="gauge",
    name="tunery_job_eval_loss",
    labels=ADAPTER,
    help="The held-out loss of a running job's last evaluation.",
)

BATCHES = Row(
    kind="gauge",
    name="tunery_batches",
    labels=("state",),
    help="Batches by state, on all gateways of the registry.",
)
BATCH_REQUESTS = Row(
    kind="counter",
    name="tunery_batch_requests",
    labels=("outcome",),
    help="Requests of batches that this gateway has answered: completed, or failed.",
)
WEBHOOK_ATTEMPTS = Row(
    kind="counter",
    name="tunery_webhook_attempts",
    labels=("outcome",),
    help="Webhooks that this gateway sent, by outcome: delivered, retried later, or given_up.",
)
TRACE_SPANS = Row(
    kind="counter",
    name="tunery_trace_spans",
    labels=("outcome",),
    help="Spans of traces, by outcome: exported, or dropped because the collector did not take them.",
)
WEBHOOKS_PENDING = Row(
    kind="gauge",
    name="tunery_webhooks_pending",
    help="Webhooks that wait to be sent, or sent again, on all gateways and workers of the registry.",
)
WEBHOOKS_OLDEST_SECONDS = Row(
    kind="gauge",
    name="tunery_webhooks_oldest_seconds",
    help="How long ago the event of the oldest pending webhook was; 0 when none is pending.",
)

# -- what the engine reports ------------------------------------------------------------------------------------------

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

TABLE: tuple[Row, ...] = (*(value for value in tuple(globals().values()) if isinstance(value, Row)), *REPORTED)
"""Every metric."""


class ExposedMetric(msgspec.Struct, frozen=True, order=True):
    """A metric under one of its names, as Prometheus sees it."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


def exposed_metrics() -> Iterator[ExposedMetric]:
    """Every metric under each of its names, for the documentation."""
    for row in TABLE:
        suffix = "_total" if row.kind == "counter" else ""
        if row.name:
            yield ExposedMetric(row.name + suffix, row.kind, row.labels, row.help)
        if row.vllm:
            labels = tuple(VLLM_LABELS.get(label, label) for label in row.labels)
            yield ExposedMetric(row.vllm + suffix, row.kind, labels, row.help)
