"""Declares every metric: its own name, vLLM's name for the same thing, kind, labels, buckets and meaning. Those that the
engine reports are in `engine_rows`.

vLLM's names let dashboards and routers made for it work unchanged. No label takes values that a client can make up:
`adapter` is a registered adapter's `tenant/name` or one of BASE, COMPOSITION and OTHER, and vLLM's metrics call it
`model_name`; `tenant` is one of the busiest tenants, NO_TENANT or OTHER_TENANTS.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tunery.gateway.metrics.engine_rows import REPORTED
from tunery.gateway.metrics.row import (
    ADAPTER,
    BASE,
    COMPOSITION,
    FIRST_TOKEN,
    LOADING,
    MAX_ADAPTERS,
    NEXT_TOKEN,
    OTHER,
    TENANT,
    TOKEN_COUNT,
    TRANSACTION,
    VERSION,
    VERSION_SECONDS,
    VLLM_LABELS,
    WHOLE_REQUEST,
    Kind,
    Row,
)

__all__ = [
    "BASE",
    "COMPOSITION",
    "MAX_ADAPTERS",
    "OTHER",
    "TABLE",
    "VLLM_LABELS",
    "ExposedMetric",
    "Row",
    "exposed_metrics",
]

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
HTTP_ERRORS = Row(
    kind="counter",
    name="tunery_http_errors",
    labels=("status", "code"),
    help="HTTP requests that were answered with an error, by its status and code.",
)

# -- tenants ------------------------------------------------------------------------------------------------------------

TENANT_REQUESTS = Row(
    kind="counter",
    name="tunery_tenant_requests",
    labels=("tenant", "result"),
    help="Inference requests of a tenant, by result: answered, refused (429), cancelled or failed.",
)
TENANT_PROMPT_TOKENS = Row(
    kind="counter",
    name="tunery_tenant_prompt_tokens",
    labels=TENANT,
    help="Prompt tokens read for a tenant.",
)
TENANT_GENERATED_TOKENS = Row(
    kind="counter",
    name="tunery_tenant_generated_tokens",
    labels=TENANT,
    help="Tokens generated for a tenant.",
)
TENANT_FIRST_TOKEN = Row(
    kind="histogram",
    name="tunery_tenant_time_to_first_token_seconds",
    labels=TENANT,
    buckets=FIRST_TOKEN,
    help="From the arrival of a tenant's request to its first token.",
)
TENANT_IN_FLIGHT = Row(
    kind="gauge",
    name="tunery_tenant_requests_in_flight",
    labels=TENANT,
    help="Inference requests of a tenant accepted and not yet answered.",
)

# -- versions -----------------------------------------------------------------------------------------------------------

VERSION_REQUESTS = Row(
    kind="counter",
    name="tunery_version_requests",
    labels=(*VERSION, "result"),
    help="Inference requests that a version answered, by result: answered, cancelled or failed.",
)
VERSION_REQUEST_SECONDS = Row(
    kind="histogram",
    name="tunery_version_request_seconds",
    labels=VERSION,
    buckets=VERSION_SECONDS,
    help="From the arrival of a request that a version answered to its last token.",
)
VERSION_GENERATED_TOKENS = Row(
    kind="counter",
    name="tunery_version_generated_tokens",
    labels=VERSION,
    help="Tokens that a version generated.",
)
ALIAS_VERSION = Row(
    kind="gauge",
    name="tunery_alias_version",
    labels=("adapter", "alias"),
    help="The number of the version that an alias points to.",
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

# -- the gateway ---------------------------------------------------------------------------------------------------------

DRAINING = Row(
    kind="gauge",
    name="tunery_draining",
    help="1 while the gateway shuts down and accepts no new requests.",
)
DISK_FREE = Row(
    kind="gauge",
    name="tunery_disk_free_bytes",
    labels=("place",),
    help="Bytes that may still be written to the disk of the home, or of the blobs.",
)
DISK_SIZE = Row(
    kind="gauge",
    name="tunery_disk_size_bytes",
    labels=("place",),
    help="Size of the disk of the home, or of the blobs.",
)
REGISTRY_UP = Row(
    kind="gauge",
    name="tunery_registry_up",
    help="1 while the registry's database can be read.",
)
REGISTRY_WRITABLE = Row(
    kind="gauge",
    name="tunery_registry_writable",
    help="1 unless the database is gone or read-only, or the last change to it failed within a minute.",
)
REGISTRY_SECONDS = Row(
    kind="histogram",
    name="tunery_registry_transaction_seconds",
    labels=("kind",),
    buckets=TRANSACTION,
    help="How long a transaction of this gateway took, waiting for the lock included, by kind: read or write.",
)
REGISTRY_FAILURES = Row(
    kind="counter",
    name="tunery_registry_failures",
    labels=("code",),
    help="Transactions of this gateway that failed, by the code of the error.",
)
KEYS = Row(
    kind="gauge",
    name="tunery_keys",
    labels=("state",),
    help="API keys by state: active, expiring (active, not replaced, ending within 14 days), expired or revoked.",
)
KEYS_AGE = Row(
    kind="gauge",
    name="tunery_keys_age_seconds",
    help="How long ago the gateway last knew that its keys are those of the registry; a revocation after that does not count yet.",
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
JOB_SILENT_SECONDS = Row(
    kind="gauge",
    name="tunery_job_silent_seconds",
    help="How long the quietest running job has reported nothing; 0 when none runs.",
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
