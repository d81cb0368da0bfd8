"""Metrics as Prometheus reads them."""

from __future__ import annotations

from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.api.conftest import Served
from tunery.gateway.engine.fake import FakeEngine
from tunery.gateway.engine.messages import Resident, Stats
from tunery.gateway.metrics.recorder import Metrics
from tunery.gateway.metrics.table import MAX_ADAPTERS, OTHER, exposed_metrics

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(served: Served) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    async with httpx.AsyncClient(verify=False) as client:
        response = await client.get(f"{served.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return samples(response.text)


def stats(**changes: object) -> Stats:
    values: dict[str, object] = {
        "running": 2,
        "waiting": 1,
        "running_adapters": {"acme/support": 2},
        "waiting_adapters": {"globex/tickets": 1},
        "resident": [Resident("d1", "acme/support", 1, 700, 2), Resident("d2", "acme/support", 2, 300, 0, pinned=True)],
        "resident_bytes": 1000,
        "kv_used": 0.25,
        "steps": 5,
        "step_tokens": 50,
        "loads": {"acme/support": 2},
        "load_failures": {"acme/bad": 1},
        "evictions": {"acme/old": 3},
        "hits": {"acme/support": 9},
        "load_seconds": [("acme/support", 0.02)],
        "ram_bytes": 400,
        "preemptions": 3,
        "prefix_queries": 90,
        "prefix_hits": 60,
    }
    return Stats(**(values | changes))  # type: ignore[arg-type]


async def test_requests_are_counted_and_timed_by_adapter(served: Served) -> None:
    served.publish("acme/support")
    for model in ("acme/support", "acme/support@1", "tiny"):
        await served.client.chat.completions.create(model=model, messages=MESSAGES)
    samples = await scrape(served)
    acme, base = ("adapter", "acme/support"), ("adapter", "base")
    assert samples["tunery_requests_total", (acme, ("outcome", "stop"))] == 2
    assert samples["tunery_requests_total", (base, ("outcome", "stop"))] == 1
    generated = samples["tunery_generated_tokens_total", (acme,)]
    assert generated == samples["vllm:generation_tokens_total", (("model_name", "acme/support"),)]
    assert samples["tunery_time_to_first_token_seconds_count", (acme,)] == 2
    assert samples["tunery_time_per_output_token_seconds_count", (acme,)] == generated - 2
    assert samples["tunery_request_seconds_count", (acme,)] == 2
    assert samples["vllm:request_success_total", (("finished_reason", "stop"), ("model_name", "base"))] == 1
    route = ("route", "/v1/chat/completions")
    assert samples["tunery_http_requests_total", (route, ("status", "200"))] == 3


async def test_compositions_share_one_label(served: Served) -> None:
    for seed, name in enumerate(("acme/tone", "acme/facts")):
        served.publish(name, seed=seed)
    for model in ("acme/tone+acme/facts", "acme/tone:0.25+acme/facts", "acme/tone:0.5"):
        await served.client.chat.completions.create(model=model, messages=MESSAGES)
    samples = await scrape(served)
    assert samples["tunery_requests_total", (("adapter", "mix"), ("outcome", "stop"))] == 2
    assert samples["tunery_requests_total", (("adapter", "acme/tone"), ("outcome", "stop"))] == 1


async def test_the_engines_state_is_shown(served: Served) -> None:
    served.engine.report(stats())
    samples = await scrape(served)
    acme = (("adapter", "acme/support"),)
    assert samples["tunery_engine_running", ()] == samples["vllm:num_requests_running", ()] == 2
    assert samples["tunery_engine_waiting", ()] == samples["vllm:num_requests_waiting", ()] == 1
    assert samples["tunery_adapter_resident_bytes", acme] == 1000
    assert samples["tunery_resident_adapters", ()] == 2
    assert samples["tunery_adapter_loads_total", acme] == 2
    assert samples["tunery_adapter_load_seconds_count", acme] == 1
    assert samples["tunery_adapter_cache_hits_total", acme] == 9
    assert samples["tunery_adapter_evictions_total", (("adapter", "acme/old"),)] == 3
    assert samples["tunery_adapter_load_failures_total", (("adapter", "acme/bad"),)] == 1
    assert samples["vllm:kv_cache_usage_perc", ()] == 0.25
    assert samples["tunery_engine_up", ()] == 1
    assert (samples["tunery_pinned_adapters", ()], samples["tunery_adapter_ram_bytes", ()]) == (1, 400)
    assert samples["tunery_preemptions_total", ()] == samples["vllm:num_preemptions_total", ()] == 3
    assert samples["tunery_prefix_cache_queries_total", ()] == samples["vllm:prefix_cache_queries_total", ()] == 90
    assert samples["tunery_prefix_cache_hits_total", ()] == samples["vllm:prefix_cache_hits_total", ()] == 60


async def test_counters_go_on_when_a_new_engine_begins_at_zero(served: Served) -> None:
    for count in (5, 7, 1, 1, 4):
        served.engine.report(stats(loads={"a/b": count}, preemptions=count))
    samples = await scrape(served)
    assert samples["tunery_adapter_loads_total", (("adapter", "a/b"),)] == 11
    assert samples["tunery_preemptions_total", ()] == samples["vllm:num_preemptions_total", ()] == 11


async def test_the_routers_metric_is_one_series_that_names_who_runs_and_who_waits(served: Served) -> None:
    served.engine.report(stats())
    served.engine.report(stats(waiting_adapters={}, running_adapters={"x/y": 1}, resident=[]))
    series = {
        labels: value for (name, labels), value in (await scrape(served)).items() if name == "vllm:lora_requests_info"
    }
    (labels,) = series
    assert dict(labels) == {"max_lora": "4", "running_lora_adapters": "x/y", "waiting_lora_adapters": ""}
    assert series[labels] > 1.7e9


@pytest.mark.slow
async def test_a_thousand_made_up_names_add_no_series(served: Served) -> None:
    served.publish("acme/support")
    await served.client.chat.completions.create(model="acme/support", messages=MESSAGES)
    before = set(await scrape(served))
    async with httpx.AsyncClient(verify=False) as client:
        for number in range(1000):
            body = {"model": f"made/up-{number}", "messages": MESSAGES}
            response = await client.post(f"{served.url}/v1/chat/completions", json=body)
            assert response.status_code == 404
    samples = await scrape(served)
    assert set(samples) == before
    chat = (("route", "/v1/chat/completions"), ("status", "404"))
    assert samples["tunery_http_requests_total", chat] == 1000


def test_more_adapters_than_there_is_room_for_share_a_label() -> None:
    metrics = Metrics()
    labels = {metrics.label(f"tenant/{number}") for number in range(MAX_ADAPTERS + 50)}
    assert len(labels) == MAX_ADAPTERS + 1
    assert OTHER in labels
    assert metrics.label("tenant/3") == "tenant/3"


async def test_paths_do_not_become_labels(served: Served) -> None:
    async with httpx.AsyncClient(verify=False) as client:
        for path in ("/a", "/b/c", "/v1/models/who/ever"):
            await client.get(served.url + path)
    counted = {
        dict(labels)["route"]: value
        for (name, labels), value in (await scrape(served)).items()
        if name == "tunery_http_requests_total" and dict(labels)["status"] == "404"
    }
    assert {route: count for route, count in counted.items() if count} == {"unknown": 2, "/v1/models/{name}": 1}


async def test_failures_are_outcomes(served: Served) -> None:
    from tunery.registry.errors import Unavailable

    served.engine.failure = Unavailable("gone", code="engine_restarted")
    with pytest.raises(openai.InternalServerError):
        await served.client.chat.completions.create(model="tiny", messages=MESSAGES)
    samples = await scrape(served)
    assert samples["tunery_requests_total", (("adapter", "base"), ("outcome", "engine_restarted"))] == 1


async def test_a_dead_engine_runs_and_holds_nothing(served: Served) -> None:
    served.engine.report(stats())
    served.engine.die()
    samples = await scrape(served)
    for name in (
        "tunery_engine_up",
        "tunery_engine_running",
        "tunery_engine_waiting",
        "tunery_resident_adapters",
        "tunery_resident_bytes",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "tunery_pinned_adapters",
        "tunery_adapter_ram_bytes",
    ):
        assert samples[name, ()] == 0, name
    assert not [name for name, _ in samples if name in ("vllm:lora_requests_info", "tunery_adapter_resident_bytes")]
    assert samples["tunery_adapter_loads_total", (("adapter", "acme/support"),)] == 2, "counters keep what was counted"


async def test_a_client_that_leaves_is_an_outcome_of_its_own(served: Served) -> None:
    served.engine.delay = 0.05
    stream = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    await anext(stream.__aiter__())
    await stream.close()
    base = ("adapter", "base")
    key = ("tunery_requests_total", (base, ("outcome", "cancelled")))
    for _ in range(100):
        samples = await scrape(served)
        if samples[key]:
            break
    assert samples[key] == 1
    assert samples["vllm:request_success_total", (("finished_reason", "abort"), ("model_name", "base"))] == 1
    assert samples["tunery_requests_in_flight", ()] == 0
    assert samples["tunery_request_seconds_count", (base,)] == 0, "it never got a whole answer"


async def test_every_series_that_can_be_known_begins_at_zero(served: Served) -> None:
    """Prometheus' increase() does not see a counter that appears at 1."""
    served.publish("acme/support")
    samples = await scrape(served)
    base, acme = (("adapter", name) for name in ("base", "acme/support"))
    for outcome in ("stop", "length", "cancelled", "overloaded", "engine_restarted"):
        for label in (base, acme):
            assert samples["tunery_requests_total", (label, ("outcome", outcome))] == 0
    for name in ("loads", "load_failures", "evictions", "cache_hits"):
        assert samples[f"tunery_adapter_{name}_total", (acme,)] == 0
    assert samples["tunery_adapter_load_seconds_count", (acme,)] == 0
    assert samples["tunery_time_to_first_token_seconds_count", (base,)] == 0
    for route, status in (("/v1/chat/completions", "500"), ("/v1/models/{name}", "404"), ("/v1/completions", "499")):
        assert samples["tunery_http_requests_total", (("route", route), ("status", status))] == 0
    assert samples["tunery_engine_restarts_total", ()] == 0
    served.publish("globex/tickets")
    assert ("tunery_adapter_evictions_total", (("adapter", "globex/tickets"),)) in await scrape(served)


def test_no_label_goes_to_an_adapter_nobody_uses_where_there_are_too_many() -> None:
    metrics = Metrics()
    metrics.add_adapters([f"tenant/{number}" for number in range(MAX_ADAPTERS + 1)])
    assert metrics.label("late/comer") == "late/comer"


def test_every_declared_metric_is_served_under_its_names() -> None:
    metrics = Metrics()
    metrics.update_engine(FakeEngine().ready, stats())
    families = {family.name: family for family in metrics.registry.collect()}
    for declared in exposed_metrics():
        family = families.pop(declared.name.removesuffix("_total"))
        assert (family.type, family.documentation) == (declared.kind, declared.help)
    assert not families


def test_the_documentation_has_every_metric_with_its_labels() -> None:
    metrics = Metrics()
    wanted = set()
    for collector in metrics.registry._collector_to_names:
        for family in collector.collect():
            labels = getattr(collector, "_labelnames", ("max_lora", "running_lora_adapters", "waiting_lora_adapters"))
            suffix = "_total" if family.type == "counter" else ""
            shown = ", ".join(f"`{label}`" for label in labels) or "none"
            wanted.add(f"| `{family.name}{suffix}` | {family.type} | {shown} | {family.documentation} |")
    written = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    assert {line for line in written.splitlines() if line.startswith("| `")} == wanted
