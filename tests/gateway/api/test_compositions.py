"""Compositions of several adapters, through the real openai client."""

from __future__ import annotations

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.api.conftest import Served
from tests.narrowing import present
from tunery.gateway.engine.composition import composition_digest
from tunery.gateway.engine.messages import Embed, Generate

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


async def test_a_composition_answers_and_says_so(served: Served) -> None:
    tone, facts = (served.publish(name, seed=seed) for seed, name in enumerate(("acme/tone", "globex/facts")))
    raw = await served.client.chat.completions.with_raw_response.create(
        model="acme/tone:0.5+globex/facts@1", messages=MESSAGES
    )
    (request,) = served.engine.requests
    assert [(part.source.digest, part.weight) for part in request.composition] == [
        (tone.digest, 0.5),
        (facts.digest, 1.0),
    ]
    assert request.tenant == "acme"
    assert raw.headers["x-tunery-adapter"] == "acme/tone,globex/facts"
    assert raw.headers["x-tunery-version"] == "1,1"
    assert raw.headers["x-tunery-digest"] == f"{tone.digest},{facts.digest}"
    assert raw.headers["x-tunery-weight"] == "0.5,1"
    answer = raw.parse()
    assert answer.model == "acme/tone:0.5+globex/facts@1"
    assert composition_digest(request.composition)[:10] in present(answer.system_fingerprint)


async def test_every_inference_endpoint_takes_one_and_so_does_the_header(served: Served) -> None:
    for seed, name in enumerate(("acme/tone", "acme/facts")):
        served.publish(name, seed=seed)
    await served.client.completions.create(model="acme/tone+acme/facts", prompt="x")
    await served.client.embeddings.create(model="acme/tone+acme/facts", input="x")
    await served.client.chat.completions.create(
        model="tiny", messages=MESSAGES, extra_headers={"x-tunery-adapter": "acme/tone+acme/facts"}
    )
    asked: list[Generate | Embed] = [*served.engine.requests, *served.engine.embeds]
    assert [len(request.composition) for request in asked] == [2, 2, 2]


async def test_a_part_that_does_not_exist_is_named(served: Served) -> None:
    served.publish("acme/tone")
    with pytest.raises(openai.NotFoundError, match="acme/fcats") as caught:
        await served.client.chat.completions.create(model="acme/tone+acme/fcats:2", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["acme/tone:0", "acme/tone:11", "acme/tone:nan", "acme/tone:1+acme/tone:2"])
async def test_what_is_no_composition_is_400(served: Served, model: str) -> None:
    served.publish("acme/tone")
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.chat.completions.create(model=model, messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("invalid_composition", "model")


async def test_a_composition_is_no_model_of_its_own(served: Served) -> None:
    served.publish("acme/tone")
    with pytest.raises(openai.BadRequestError, match="only inference endpoints take"):
        await served.client.models.retrieve("acme/tone:2")
