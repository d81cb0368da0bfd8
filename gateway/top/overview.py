"""What there is to see of a server: an overview made of two expositions and the list of adapters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import msgspec

from tunery.gateway.api.schemas.models import AdapterCard
from tunery.gateway.metrics.table import BASE, COMPOSITION, OTHER
from tunery.gateway.top.exposition import Exposition
from tunery.registry.names import tenant_of

__all__ = ["AdapterLoad", "JobLoad", "Overview", "TenantLoad", "overview"]

_FIRST_TOKEN = "tunery_time_to_first_token_seconds"  # noqa: S105
_GOOD = frozenset({"stop", "length", "tool_calls", "cancelled"})


class AdapterLoad(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter: requests and generated tokens each second, and its versions in memory."""

    name: str
    requests: float
    tokens: float
    bytes: float = 0.0
    running: int = 0
    versions: tuple[int, ...] = ()
    pinned: bool = False


class TenantLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's adapters together."""

    name: str
    requests: float
    tokens: float
    adapters: int


class JobLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A running training job, by its adapter."""

    adapter: str
    done: float
    step_seconds: float | None = None
    train_loss: float | None = None


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """A server over `seconds`: rates are each second, times in s, `first_token_*` None where there was none."""

    server: str
    seconds: float
    up: bool
    restarts: int
    in_flight: int
    running: int
    waiting: int
    requests: float
    errors: float
    prompt_tokens: float
    generated_tokens: float
    first_token_p50: float | None
    first_token_p95: float | None
    kv_used: float
    resident_bytes: float
    budget_bytes: float
    adapters: tuple[AdapterLoad, ...]
    tenants: tuple[TenantLoad, ...]
    jobs: dict[str, int]
    running_jobs: tuple[JobLoad, ...]


def overview(server: str, now: Exposition, earlier: Exposition, cards: list[AdapterCard], *, most: int) -> Overview:
    """What a server did between two times; at most `most` adapters and tenants, the busiest first."""
    outcomes = now.rate("tunery_requests_total", earlier, label="outcome")
    loads = _adapters(now, earlier, cards)
    return Overview(
        server=server,
        seconds=now.at - earlier.at,
        up=bool(now.value("tunery_engine_up")),
        restarts=int(now.value("tunery_engine_restarts_total")),
        in_flight=int(now.value("tunery_requests_in_flight")),
        running=int(now.value("tunery_engine_running")),
        waiting=int(now.value("tunery_engine_waiting")),
        requests=sum(outcomes.values()),
        errors=sum(rate for outcome, rate in outcomes.items() if outcome not in _GOOD),
        prompt_tokens=sum(now.rate("tunery_prompt_tokens_total", earlier).values()),
        generated_tokens=sum(now.rate("tunery_generated_tokens_total", earlier).values()),
        first_token_p50=now.quantile(_FIRST_TOKEN, 0.50, earlier),
        first_token_p95=now.quantile(_FIRST_TOKEN, 0.95, earlier),
        kv_used=now.value("vllm:kv_cache_usage_perc"),
        resident_bytes=now.value("tunery_resident_bytes"),
        budget_bytes=now.value("tunery_adapter_budget_bytes"),
        adapters=tuple(loads[:most]),
        tenants=tuple(_tenants(loads)[:most]),
        jobs={state: int(count) for state, count in now.by("tunery_jobs", "state").items()},
        running_jobs=tuple(_running_jobs(now)),
    )


def _adapters(now: Exposition, earlier: Exposition, cards: list[AdapterCard]) -> list[AdapterLoad]:
    """Those with requests or in memory, the busiest first."""
    requests = now.rate("tunery_requests_total", earlier, label="adapter")
    tokens = now.rate("tunery_generated_tokens_total", earlier, label="adapter")
    sizes = now.by("tunery_adapter_resident_bytes", "adapter")
    known = {card.id: card for card in cards}
    loads = []
    for name in requests.keys() | tokens.keys() | sizes.keys():
        resident = known[name].resident if name in known else []
        load = AdapterLoad(
            name=name,
            requests=requests.get(name, 0.0),
            tokens=tokens.get(name, 0.0),
            bytes=sizes.get(name, 0.0),
            running=sum(version.running for version in resident),
            versions=tuple(version.version for version in resident),
            pinned=any(version.pinned for version in resident),
        )
        if load.requests or load.tokens or load.bytes:
            loads.append(load)
    return sorted(loads, key=lambda load: (-load.tokens, -load.requests, -load.bytes, load.name))


def _tenants(loads: list[AdapterLoad]) -> list[TenantLoad]:
    by_tenant: defaultdict[str, list[AdapterLoad]] = defaultdict(list)
    for load in loads:
        by_tenant[load.name if load.name in (BASE, COMPOSITION, OTHER) else tenant_of(load.name)].append(load)
    tenants = [
        TenantLoad(
            name=name,
            requests=sum(load.requests for load in each),
            tokens=sum(load.tokens for load in each),
            adapters=len(each),
        )
        for name, each in by_tenant.items()
    ]
    return sorted(tenants, key=lambda tenant: (-tenant.tokens, -tenant.requests, tenant.name))


def _running_jobs(now: Exposition) -> list[JobLoad]:
    seconds: Mapping[str, float] = now.by("tunery_job_step_seconds", "adapter")
    losses: Mapping[str, float] = now.by("tunery_job_train_loss", "adapter")
    return [
        JobLoad(adapter=adapter, done=done, step_seconds=seconds.get(adapter), train_loss=losses.get(adapter))
        for adapter, done in sorted(now.by("tunery_job_done_ratio", "adapter").items())
    ]
