"""Embeddings through the real openai client."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.gateway.api.conftest import Served
from tests.gateway.api.test_metrics import scrape
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import Unavailable

BASE = ("adapter", "base")


@pytest.mark.slow
@pytest.mark.parametrize("given", ["some text", ["some", "texts"], [5, 6, 7], [[5, 6], [7]]])
@pytest.mark.parametrize("format_", ["float", "base64"])
async def test_every_shape_of_input(served: Served, given: Any, format_: Any) -> None:
    answer = await served.client.embeddings.create(model="tiny", input=given, encoding_format=format_)
    prompts = [embed.prompt for embed in served.engine.embeds]
    assert [one.index for one in answer.data] == list(range(len(prompts)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, prompts))
    if format_ == "float":
        for one, prompt in zip(answer.data, prompts, strict=True):
            assert one.embedding == pytest.approx(unit([len(prompt), prompt[-1]]))
    # Without a format the client asks for base64 and decodes it.
    decoded = await served.client.embeddings.create(model="tiny", input=given)
    for one, prompt in zip(decoded.data, prompts, strict=True):
        assert list(one.embedding) == pytest.approx(unit([len(prompt), prompt[-1]]))


def unit(vector: list[float]) -> list[float]:
    norm = sum(value * value for value in vector) ** 0.5
    return [value / norm for value in vector]


async def test_length_and_dimensions_are_openais_unless_they_are_asked_for(served: Served) -> None:
    async def vector(**options: Any) -> list[float]:
        answer = await served.client.embeddings.create(
            model="tiny", input=[[5, 6, 7]], encoding_format="float", **options
        )
        embedding: list[float] = answer.data[0].embedding
        return embedding

    assert await vector() == pytest.approx(unit([3, 7]))
    assert await vector(dimensions=1) == [1.0], "what is left has length 1 again"
    assert await vector(dimensions=2) == pytest.approx(unit([3, 7]))
    assert await vector(extra_body={"normalize": False}) == [3.0, 7.0]
    assert await vector(dimensions=1, extra_body={"normalize": False}) == [3.0]
    for size in (0, -1, 3, 10**30):
        with pytest.raises(openai.BadRequestError) as caught:
            await vector(dimensions=size)
        assert caught.value.param == "dimensions"


async def test_adapters_and_pooling(served: Served) -> None:
    version = served.publish("acme/support")
    raw = await served.client.embeddings.with_raw_response.create(
        model="acme/support", input="x", extra_body={"pooling": "last"}
    )
    assert raw.headers["x-tunery-digest"] == version.digest
    assert raw.parse().model == "acme/support"
    await served.client.embeddings.create(model="tiny", input="x")
    first, second = served.engine.embeds
    assert (first.composition[0].source.digest, first.pooling, first.tenant) == (version.digest, "last", "acme")
    assert (second.composition, second.pooling, second.tenant) == ((), "mean", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_input"),
        ({"input": []}, "input", "invalid_input"),
        ({"input": ["x"] * 2049}, "input", "invalid_input"),
        ({"input": ["x"] * 405}, "input", "invalid_input"),
        ({"input": [2**40]}, "input", "invalid_input"),
        ({"input": "word " * 3000}, "input", "context_length_exceeded"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"extra_body": {"pooling": "max"}}, "pooling", "invalid_value"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(served: Served, extra: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.embeddings.create(**{"model": "tiny", "input": "x", **extra})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert served.engine.embeds == []


async def test_an_unknown_model_is_never_answered_by_the_base(served: Served) -> None:
    with pytest.raises(openai.NotFoundError):
        await served.client.embeddings.create(model="acme/none", input="x")


async def test_they_are_counted_like_other_requests(served: Served) -> None:
    await served.client.embeddings.create(model="tiny", input=["a b", "c"])
    samples = await scrape(served)
    assert samples["tunery_requests_total", (BASE, ("outcome", "stop"))] == 2
    assert samples["tunery_prompt_tokens_total", (BASE,)] == sum(len(embed.prompt) for embed in served.engine.embeds)
    assert samples["tunery_requests_in_flight", ()] == 0
    route = ("route", "/v1/embeddings")
    assert samples["tunery_http_requests_total", (route, ("status", "200"))] == 1


async def test_an_engine_that_dies_is_503_and_ends_the_others_too(served: Served) -> None:
    served.engine.delay = 0.05
    asking = asyncio.create_task(served.client.embeddings.create(model="tiny", input=["a", "b"]))
    while len(served.engine.embeds) < 2:
        await asyncio.sleep(0.01)
    served.engine.failure = Unavailable("the engine stopped", code="engine_restarted")
    with pytest.raises(openai.InternalServerError) as caught:
        await asking
    assert (caught.value.status_code, caught.value.code) == (503, "engine_restarted")
    assert served.gateway.in_flight == 0


async def test_a_client_that_leaves_cancels_every_input(served: Served) -> None:
    served.engine.delay = 30
    asking = asyncio.create_task(served.client.embeddings.create(model="tiny", input=["a", "b", "c"]))
    while len(served.engine.embeds) < 3:
        await asyncio.sleep(0.01)
    assert served.gateway.in_flight == 3
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    for _ in range(100):
        if served.gateway.in_flight == 0:
            break
        await asyncio.sleep(0.02)
    assert sorted(served.engine.cancelled) == sorted(embed.id for embed in served.engine.embeds)
    assert (await scrape(served))["tunery_requests_total", (BASE, ("outcome", "cancelled"))] == 3


class TestBounds:
    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(base="tiny", auth=False, max_batch=1, max_waiting=2)

    @pytest.mark.slow
    async def test_more_than_may_wait_is_429(self, served: Served) -> None:
        served.engine.delay = 0.2
        asking = asyncio.create_task(served.client.embeddings.create(model="tiny", input=["a", "b"]))
        while served.gateway.in_flight < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(openai.RateLimitError):
            await served.client.embeddings.create(model="tiny", input=["c", "d"])
        await asking
