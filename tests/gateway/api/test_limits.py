"""Limits of tenants and keys over HTTP, through the `openai` client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from openai import AsyncOpenAI, RateLimitError

from tests.gateway.api.conftest import Served
from tunery.gateway.tenancy.limits.compute_guard import ComputeGuard
from tunery.gateway.tenancy.principal import Principal
from tunery.registry.audit.log import AuditFilter
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import Unavailable
from tunery.registry.usage.records import TRAINING, UsageRecord

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


def rows(count: int, *, start: int = 0) -> bytes:
    """Examples to train on, each of 90 bytes."""
    line = '{{"messages": [{{"role": "user", "content": "{}"}}, {{"role": "assistant", "content": "{}"}}]}}\n'
    return "".join(line.format(f"{n:05}?", f"{n:07}") for n in range(start, start + count)).encode()


@pytest.fixture
def settings() -> ServeSettings:
    return ServeSettings(base="tiny", max_batch=4, max_waiting=4)


class Tenant:
    """A tenant's key and client."""

    def __init__(self, served: Served, name: str) -> None:
        self.served, self.name = served, name
        self.key, self.token = served.gateway.registry.keys.create(
            tenant=name, scopes=("infer", "train"), actor="test"
        )  # fmt: skip
        http = httpx2.AsyncClient(verify=False, timeout=600)
        self.client = AsyncOpenAI(base_url=f"{served.url}/v1", api_key=self.token, max_retries=0, http_client=http)

    async def limit(self, *, key: bool = False, **limits: float) -> None:
        """Set limits, and wait until the gateway knows them."""
        self.served.gateway.registry.limits.set(self.name, limits, key=self.key.id if key else "", actor="test")
        book = self.served.gateway.limiter.book
        async with asyncio.timeout(60):
            while True:
                known = book.of_key(self.name, self.key.id) if key else book.of_tenant(self.name)
                if all(getattr(known, name) == value for name, value in limits.items()):
                    return
                await asyncio.sleep(0.02)

    async def chat(self, **more: Any) -> Any:
        return await self.client.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES, **more)

    async def left(self, what: str) -> int:
        """What a limit has left, as a request without an answer of its own would say."""
        return int(self.served.gateway.limiter.headers(self.principal)[f"x-ratelimit-remaining-{what}"])

    @property
    def principal(self) -> Any:
        return Principal.of(self.key)


@pytest.fixture
async def acme(served: Served) -> AsyncIterator[Tenant]:
    tenant = Tenant(served, "acme")
    yield tenant
    await tenant.client.close()


@pytest.fixture
async def globex(served: Served) -> AsyncIterator[Tenant]:
    tenant = Tenant(served, "globex")
    yield tenant
    await tenant.client.close()


async def test_requests_a_minute(served: Served, acme: Tenant, globex: Tenant) -> None:
    assert not [name for name in (await acme.chat()).headers if name.startswith("x-ratelimit")]
    await acme.limit(requests_per_minute=3)
    answers = [await acme.chat(max_tokens=2) for _ in range(2)]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
    assert answers[0].headers["x-ratelimit-reset-requests"].startswith("1m")
    stream = await acme.client.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES, stream=True)
    assert stream.headers["x-ratelimit-remaining-requests"] == "0"
    async for _ in stream.parse():
        """To its end."""
    count = len(served.engine.requests)
    for ask in (
        acme.chat(),
        acme.client.completions.create(model="tiny", prompt="x"),
        acme.client.embeddings.create(model="tiny", input="x"),
        acme.client.responses.create(model="tiny", input="x"),
        acme.client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True),
    ):
        with pytest.raises(RateLimitError) as refused:
            await ask
        body: Any = refused.value.body
        assert (body["code"], body["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert "the tenant acme may have 3 requests per minute" in body["message"]
        headers = refused.value.response.headers
        assert 0 < int(headers["retry-after"]) <= 65
        assert 0 < int(headers["retry-after-ms"]) <= 65_000
        assert headers["x-ratelimit-remaining-requests"] == "0"
    assert len(served.engine.requests) == count
    # A name that does not exist is no request, and another tenant has its own minute.
    with pytest.raises(openai.NotFoundError):
        await acme.client.chat.completions.create(model="acme/none", messages=MESSAGES)
    assert (await globex.chat()).status_code == 200
    metrics = served.gateway.metrics.exposition().decode()
    assert 'tunery_limit_refusals_total{limit="requests_per_minute"} 5.0' in metrics
    assert 'tunery_limit_refusals_total{limit="storage_bytes"} 0.0' in metrics
    assert "acme" not in "".join(line for line in metrics.splitlines() if "limit_refusals" in line)


async def test_tokens_a_minute_are_reserved_and_settled(served: Served, acme: Tenant) -> None:
    await acme.limit(tokens_per_minute=1000)
    answer = await acme.chat(max_tokens=100)
    used = answer.parse().usage.total_tokens
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) == 1000 - used
    served.engine.delay = 0.02
    stream = await acme.client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, max_tokens=100)
    await anext(aiter(stream))
    reserved = used + answer.parse().usage.prompt_tokens + 100
    assert await acme.left("tokens") == 1000 - reserved
    with pytest.raises(RateLimitError, match="tokens per minute"):
        await acme.chat(max_tokens=1000 - reserved)
    # The client goes away in the middle: what it got counts, and the rest is free again.
    await stream.close()
    async with asyncio.timeout(60):
        while await acme.left("tokens") == 1000 - reserved:
            await asyncio.sleep(0.02)
    left = await acme.left("tokens")
    assert 1000 - reserved < left < 1000 - used
    served.engine.delay = 0.0
    # Requests that fail before their first token use none, and those that are wrong are none.
    served.engine.failure = Unavailable("it died", code="engine_restarted")
    with pytest.raises(openai.InternalServerError):
        await acme.chat(max_tokens=50)
    served.engine.failure = None
    with pytest.raises(openai.BadRequestError):
        await acme.chat(max_tokens=10**6)
    assert await acme.left("tokens") == left
    many = (await acme.chat(n=3, max_tokens=20)).parse().usage
    stream = await acme.client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, max_tokens=9, stream_options={"include_usage": True}
    )
    told = [chunk.usage async for chunk in stream][-1]
    assert told is not None
    embedded = (await acme.client.embeddings.create(model="tiny", input=["abc", "defg"])).usage
    total = many.total_tokens + told.total_tokens + embedded.total_tokens
    assert await acme.left("tokens") == left - total
    with pytest.raises(RateLimitError, match="lower max_tokens") as refused:
        await acme.chat(max_tokens=1000)
    assert refused.value.response.headers["x-should-retry"] == "false"


async def test_a_key_has_limits_beside_its_tenants(served: Served, acme: Tenant) -> None:
    other = Tenant(served, "acme")
    await acme.limit(requests_per_minute=4)
    await acme.limit(key=True, requests_per_minute=2)
    assert (await acme.chat()).headers["x-ratelimit-limit-requests"] == "2"
    await acme.chat()
    with pytest.raises(RateLimitError, match=f"the API key {acme.key.id} may have 2 requests per minute"):
        await acme.chat()
    await other.chat()
    assert (await other.chat()).headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(RateLimitError, match="the tenant acme"):
        await other.chat()
    served.gateway.registry.limits.clear("acme")
    async with asyncio.timeout(60):
        while served.gateway.limiter.book.of_tenant("acme").requests_per_minute:
            await asyncio.sleep(0.02)
    assert not [name for name in (await other.chat()).headers if name.startswith("x-ratelimit")]
    await other.client.close()


async def test_concurrent_requests_and_the_share_of_the_queue(served: Served, acme: Tenant, globex: Tenant) -> None:
    await acme.limit(concurrent_requests=2)
    await globex.limit(queue_share=0.25)
    served.engine.delay = 30
    running = [asyncio.create_task(acme.chat()) for _ in range(2)]
    running += [asyncio.create_task(globex.chat()) for _ in range(2)]
    async with asyncio.timeout(60):
        while len(served.engine.requests) < 4:
            await asyncio.sleep(0.02)
    with pytest.raises(RateLimitError, match="may have 2 concurrent requests"):
        await acme.chat()
    with pytest.raises(RateLimitError, match=r"its share of all places is 2 \(queue_share\)") as refused:
        await globex.chat()
    assert refused.value.response.headers["retry-after"] == "1"
    with pytest.raises(openai.BadRequestError, match="at most 2"):
        await globex.chat(n=3)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    served.engine.delay = 0.0
    async with asyncio.timeout(60):
        while served.gateway.in_flight:
            await asyncio.sleep(0.02)
    assert (await acme.chat()).status_code == (await globex.chat()).status_code == 200


async def test_a_budget_of_tokens_holds_for_batches_too(served: Served, acme: Tenant) -> None:
    used = (await acme.chat(max_tokens=5)).parse().usage.total_tokens
    await acme.limit(tokens_per_month=used + 40)
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "tiny", "messages": MESSAGES, "max_tokens": tokens},
        }
        for number, tokens in enumerate((1000, 5))
    ]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file = await acme.client.files.create(file=("requests.jsonl", content), purpose="batch")
    batch = await acme.client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    async with asyncio.timeout(120):
        while batch.status not in ("completed", "failed"):
            await asyncio.sleep(0.05)
            batch = await acme.client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
    failure = json.loads((await acme.client.files.content(str(batch.error_file_id))).text)
    assert failure["response"]["body"]["error"]["code"] == "insufficient_quota"
    with pytest.raises(RateLimitError) as refused:
        await acme.chat(max_tokens=40)
    body: Any = refused.value.body
    assert body["code"] == "insufficient_quota"
    assert f"the tenant acme may use {used + 40} tokens a month" in body["message"]
    assert refused.value.response.headers["x-should-retry"] == "false"


async def test_training_jobs_compute_and_storage(served: Served, acme: Tenant) -> None:
    client = acme.client
    file = await client.files.create(file=("rows.jsonl", rows(12)), purpose="fine-tune")
    await acme.limit(training_jobs=1, storage_bytes=len(rows(20)))
    job = await client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    with pytest.raises(RateLimitError, match="may have 1 training jobs queued and running, and has 1"):
        await client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    assert [each.id async for each in client.fine_tuning.jobs.list()] == [job.id]
    await client.fine_tuning.jobs.pause(job.id)
    second = await client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    with pytest.raises(RateLimitError, match="training jobs"):
        await client.fine_tuning.jobs.resume(job.id)
    await client.fine_tuning.jobs.cancel(second.id)
    await client.fine_tuning.jobs.resume(job.id)
    with pytest.raises(RateLimitError, match=r"may store \d+ bytes and has \d+") as refused:
        await client.files.create(file=("more.jsonl", rows(12, start=50)), purpose="fine-tune")
    body: Any = refused.value.body
    assert body["code"] == "insufficient_quota"
    assert "retry-after" not in refused.value.response.headers
    await client.files.create(file=("few.jsonl", rows(2, start=50)), purpose="fine-tune")
    await client.fine_tuning.jobs.cancel(job.id)
    await acme.limit(compute_seconds_per_month=10)
    served.gateway.registry.usage.add(
        [UsageRecord(at=served.gateway.usage.now(), tenant="acme", model="a", endpoint=TRAINING, milliseconds=10_000)]
    )
    with pytest.raises(RateLimitError, match="may train for 10 seconds a month and has trained for 10"):
        await client.fine_tuning.jobs.create(model="tiny", training_file=file.id)


async def test_a_running_job_pauses_when_the_compute_seconds_are_used_up(served: Served, acme: Tenant) -> None:
    client, gateway = acme.client, served.gateway
    file = await client.files.create(file=("rows.jsonl", rows(12)), purpose="fine-tune")
    job = await client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    claimed = gateway.registry.queue.claim("here")
    assert claimed is not None
    assert claimed.id == job.id
    guard = ComputeGuard(
        gateway.registry, gateway.limiter.book, now=gateway.usage.now, on_refused=gateway.metrics.count_limit
    )
    await acme.limit(compute_seconds_per_month=10)
    record = UsageRecord(at=gateway.usage.now(), tenant="acme", model="a", endpoint=TRAINING, milliseconds=9_000)
    for milliseconds, wanted in ((9_000, None), (1_000, "pause")):
        gateway.registry.usage.add([msgspec.structs.replace(record, milliseconds=milliseconds)])
        guard.check()
        assert gateway.registry.job(job.id).wanted == wanted
    guard.check()
    events = [each.message async for each in client.fine_tuning.jobs.list_events(job.id)]
    said = [text for text in events if "may train for 10 seconds a month and has trained for 10" in text]
    assert len(said) == 1, "a job is asked once"
    assert gateway.registry.audit.page(AuditFilter(), limit=1)[0][0].actor == "tunery"
