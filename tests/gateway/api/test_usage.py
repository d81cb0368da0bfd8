"""Usage is what clients were told, to the token, whoever asked and however it ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from tests.gateway.api.conftest import Served
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import Unavailable
from tunery.registry.usage.records import UsageQuery, UsageSum

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def settings() -> ServeSettings:
    return ServeSettings(base="tiny", max_batch=4, max_waiting=400)


class Told:
    """What a tenant was told that it used."""

    def __init__(self) -> None:
        self.requests = self.input = self.cached = self.output = 0

    def add(self, usage: Any) -> None:
        """Take in the usage of a response, of whatever kind."""
        fields: dict[str, Any] = usage if isinstance(usage, dict) else usage.model_dump()
        self.requests += 1
        self.input += fields.get("prompt_tokens", fields.get("input_tokens", 0))
        self.output += fields.get("completion_tokens", fields.get("output_tokens", 0))
        details = fields.get("prompt_tokens_details") or fields.get("input_tokens_details") or {}
        self.cached += details["cached_tokens"] if details else 0

    @property
    def sums(self) -> tuple[int, int, int, int]:
        return self.requests, self.input, self.cached, self.output


def client_of(served: Served, tenant: str, *scopes: str) -> tuple[str, AsyncOpenAI]:
    key, token = served.gateway.registry.keys.create(tenant=tenant, scopes=scopes or ("infer", "train"), actor="test")
    http = httpx2.AsyncClient(verify=False, timeout=600)
    client = AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key=token, admin_api_key=token, max_retries=0, http_client=http
    )
    return key.id, client


@pytest.fixture
async def acme(served: Served) -> AsyncIterator[tuple[str, AsyncOpenAI]]:
    key, client = client_of(served, "acme")
    yield key, client
    await client.close()


def recorded(served: Served, **more: Any) -> list[UsageSum]:
    return served.gateway.registry.usage.sums(UsageQuery(start=0, end=2**40, **more))


async def to_the_end(chunks: AsyncIterator[Any]) -> None:
    async for _ in chunks:
        """Nothing is done with it."""


async def written(served: Served) -> None:
    """Wait until what was used is in the registry."""
    async with asyncio.timeout(60):
        while served.gateway.in_flight:
            await asyncio.sleep(0.02)
    await served.gateway.usage.flush()


async def test_sums_are_what_clients_were_told(served: Served, acme: tuple[str, AsyncOpenAI]) -> None:
    served.publish("acme/support")
    served.engine.cached = 3
    key, client = acme
    told, embedded = Told(), Told()
    for model in ("tiny", "acme/support"):
        for n in (1, 3):
            answer = await client.chat.completions.create(model=model, messages=MESSAGES, n=n)
            told.add(answer.usage)
    told.add((await client.completions.create(model="tiny", prompt=["a b", "a b", "c"], n=2, max_tokens=3)).usage)
    told.add((await client.completions.create(model="tiny", prompt="abc", max_tokens=0, echo=True)).usage)
    told.add((await client.responses.create(model="tiny", input="Hello")).usage)
    with_usage = {"stream": True, "stream_options": {"include_usage": True}}
    stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, **with_usage)  # type: ignore[call-overload]
    last: Any = [chunk async for chunk in stream][-1]
    told.add(last.usage)
    # One that is not asked to say it is the same.
    await to_the_end(await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))
    told.add(last.usage)
    last = [event async for event in await client.responses.create(model="tiny", input="Hello", stream=True)][-1]
    told.add(last.response.usage)
    embedded.add((await client.embeddings.create(model="tiny", input=["abc", "defg"])).usage)
    # What is refused uses nothing.
    for wrong in ({"model": "acme/none"}, {"max_tokens": 10**6}, {"n": 99}):
        with pytest.raises((openai.NotFoundError, openai.BadRequestError)):
            await client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES} | wrong)
    await written(served)
    (chat,) = recorded(served, endpoints=(CHAT, "/v1/completions", "/v1/responses"), tenants=("acme",), keys=(key,))
    assert (chat.requests, chat.input_tokens, chat.cached_tokens, chat.output_tokens) == told.sums
    (other,) = recorded(served, endpoints=("/v1/embeddings",))
    assert (other.requests, other.input_tokens, other.output_tokens) == (1, embedded.input, 0)
    models = {each.model: each.digest for each in recorded(served, group=("model", "digest"))}
    assert models == {"tiny": "", "acme/support@1": served.gateway.registry.resolve("acme/support").digest}


async def test_who_leaves_or_is_failed_has_used_what_was_computed(
    served: Served, acme: tuple[str, AsyncOpenAI]
) -> None:
    _, client = acme
    prompt = len(served.gateway.renderer.encode("abc"))
    served.engine.delay = 0.02
    stream = await client.completions.create(model="tiny", prompt="abc", stream=True, max_tokens=50)
    await anext(aiter(stream))
    await stream.close()
    async with asyncio.timeout(60):
        while not served.engine.cancelled:
            await asyncio.sleep(0.02)
    await written(served)
    (left,) = recorded(served)
    assert (left.requests, left.input_tokens) == (1, prompt)
    assert 1 <= left.output_tokens < len(served.engine.reply)  # type: ignore[arg-type]
    # One that fails in the middle, and one that fails at once.
    stream = await client.completions.create(model="tiny", prompt="abc", stream=True, max_tokens=50)
    iterator = aiter(stream)
    await anext(iterator)
    served.engine.failure = Unavailable("it died", code="engine_restarted")
    with pytest.raises(openai.APIError):
        await to_the_end(iterator)
    with pytest.raises(openai.InternalServerError):
        await client.completions.create(model="tiny", prompt="abc")
    await written(served)
    (all_,) = recorded(served)
    assert (all_.requests, all_.input_tokens) == (3, 2 * prompt)
    with served.gateway.registry._database.read() as connection:
        outcomes = connection.exec_driver_sql("SELECT outcome, endpoint FROM usage_records ORDER BY number").all()
    assert sorted(map(tuple, outcomes)) == [
        ("cancelled", "/v1/completions"),
        ("engine_restarted", "/v1/completions"),
        ("engine_restarted", "/v1/completions"),
    ]


async def test_batches_and_evaluations_are_recorded_once_for_each_answer(
    served: Served, acme: tuple[str, AsyncOpenAI]
) -> None:
    key, client = acme
    lines = [
        {"custom_id": str(n), "method": "POST", "url": CHAT, "body": {"model": model, "messages": MESSAGES}}
        for n, model in enumerate(("tiny", "tiny", "tiny", "none"))
    ]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    # Tries that fail by no fault of the request's are told to nobody.
    failures = iter(range(2))

    def reply(request: Any) -> Any:
        if next(failures, None) is not None:
            raise Unavailable("it died", code="engine_restarted")
        return served.gateway.renderer.encode("Paris")

    served.engine.reply = reply
    file = await client.files.create(file=("requests.jsonl", content), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    async with asyncio.timeout(120):
        while batch.status not in ("completed", "failed"):
            await asyncio.sleep(0.05)
            batch = await client.batches.retrieve(batch.id)
    output = (await client.files.content(str(batch.output_file_id))).text
    told = Told()
    for line in output.splitlines():
        told.add(json.loads(line)["response"]["body"]["usage"])
    assert told.requests == 3
    await written(served)
    (sums,) = recorded(served, keys=(key,), batch=True)
    assert (sums.requests, sums.input_tokens, sums.cached_tokens, sums.output_tokens) == told.sums
    made = await client.evals.create(
        data_source_config={"type": "custom", "item_schema": {"type": "object"}},
        testing_criteria=[
            {
                "type": "string_check",
                "name": "exact",
                "input": "{{sample.output_text}}",
                "reference": "{{item.answer}}",
                "operation": "eq",
            }
        ],
    )
    source: Any = {
        "type": "completions",
        "model": "tiny",
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.question}}"}]},
        "source": {
            "type": "file_content",
            "content": [{"item": {"question": f"{n}?", "answer": "Paris"}} for n in range(3)],
        },
    }
    run: Any = await client.evals.runs.create(made.id, data_source=source)
    async with asyncio.timeout(120):
        while run.status in ("queued", "in_progress"):
            await asyncio.sleep(0.05)
            run = await client.evals.runs.retrieve(run.id, eval_id=made.id)
    assert run.status == "completed"
    await written(served)
    (evaluated,) = recorded(served, tenants=("acme",), keys=("",))
    (model,) = run.per_model_usage
    assert (evaluated.requests, evaluated.input_tokens, evaluated.output_tokens) == (
        model.invocation_count,
        model.prompt_tokens,
        model.completion_tokens,
    )


async def test_usage_is_read_as_openai_has_it(served: Served, acme: tuple[str, AsyncOpenAI]) -> None:
    key, client = acme
    admin_key, admin = client_of(served, "ops", "admin", "infer")
    start = int(time.time()) // 3600 * 3600 - 2 * 86_400
    used = (await client.completions.create(model="tiny", prompt="abc", max_tokens=3)).usage
    assert used is not None
    await client.embeddings.create(model="tiny", input="abcd")
    await admin.completions.create(model="tiny", prompt="abc", max_tokens=3)
    await written(served)
    usage: Any = client.admin.organization.usage
    page = await usage.completions(start_time=start)
    results: Any = [result for bucket in page.data for result in bucket.results]
    assert [bucket.end_time - bucket.start_time for bucket in page.data] == [86_400] * len(page.data)
    assert (page.object, page.has_more, page.next_page) == ("page", False, None)
    (result,) = results
    assert (result.object, result.num_model_requests) == ("organization.usage.completions.result", 1)
    assert (result.input_tokens, result.output_tokens) == (used.prompt_tokens, used.completion_tokens)
    assert (result.project_id, result.model) == (None, None)
    hours = await usage.completions(
        start_time=start, bucket_width="1h", limit=168, group_by=["project_id", "api_key_id", "model"]
    )
    (result,) = [result for bucket in hours.data for result in bucket.results]
    assert (result.project_id, result.api_key_id, result.model) == ("acme", key, "tiny")
    minutes = await usage.completions(start_time=int(time.time()) - 600, bucket_width="1m", models=["tiny"])
    assert sum(result.num_model_requests for bucket in minutes.data for result in bucket.results) == 1
    assert not [r for b in (await usage.completions(start_time=start, models=["x"])).data for r in b.results]
    assert not [r for b in (await usage.completions(start_time=start, batch=True)).data for r in b.results]
    embedded: Any = [r for b in (await usage.embeddings(start_time=start)).data for r in b.results]
    assert [r.num_model_requests for r in embedded] == [1]
    # Whoever administers sees all, everybody else themselves whatever they ask for.
    everybody = await admin.admin.organization.usage.completions(
        start_time=start, group_by=["project_id"], bucket_width="1d"
    )
    seen = {r.project_id for b in everybody.data for r in b.results}
    assert seen == {"acme", "ops"}
    assert not [r for b in (await usage.completions(start_time=start, project_ids=["ops"])).data for r in b.results]
    # Pages follow each other.
    first = await usage.completions(start_time=start, bucket_width="1h", limit=5)
    assert (len(first.data), first.has_more) == (5, True)
    second = await usage.completions(start_time=start, bucket_width="1h", limit=5, page=str(first.next_page))
    assert second.data[0].start_time == first.data[-1].end_time
    for wrong in ({"limit": 32}, {"group_by": ["nothing"]}, {"page": "x"}, {"end_time": 1}, {"bucket_width": "2d"}):
        with pytest.raises(openai.BadRequestError):
            await usage.completions(**{"start_time": start} | wrong)
    assert admin_key
    await admin.close()
