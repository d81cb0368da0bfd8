"""Raw completions through the real openai client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.gateway.api.conftest import REPLY, Served
from tests.narrowing import present


async def test_text_is_continued_as_it_is(served: Served) -> None:
    served.publish("acme/support")
    answer = await served.client.completions.create(model="acme/support", prompt="Once upon", max_tokens=50)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (REPLY, "stop")
    assert list(served.engine.requests[0].prompt) == served.gateway.renderer.encode("Once upon")


async def test_the_default_length_is_openais(served: Served) -> None:
    served.engine.reply = [70] * 100
    answer = await served.client.completions.create(model="tiny", prompt="x")
    assert present(answer.usage).completion_tokens == 16


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [[5, 6, 7], [[5, 6], [7]], ["a", "b"], "text"])
async def test_every_shape_of_prompt(served: Served, prompt: Any) -> None:
    answer = await served.client.completions.create(model="tiny", prompt=prompt, n=2)
    several = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    assert [choice.index for choice in answer.choices] == list(range(2 * several))
    if isinstance(prompt, list) and isinstance(prompt[0], int):
        assert served.engine.requests[0].prompt == (5, 6, 7)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["", [], [[]], [["a"]], [5, -1], [5, 2**40], [5, "x"], ["a"] * 65, [True]])
async def test_prompts_that_cannot_be(served: Served, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.completions.create(model="tiny", prompt=prompt)
    assert caught.value.param == "prompt"


async def test_echo_returns_the_prompt_first(served: Served) -> None:
    answer = await served.client.completions.create(model="tiny", prompt="Say: ", echo=True, max_tokens=50)
    assert answer.choices[0].text == "Say: " + REPLY
    stream = await served.client.completions.create(
        model="tiny", prompt=["Say: ", "And: "], echo=True, max_tokens=50, stream=True
    )
    texts = ["", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["Say: " + REPLY, "And: " + REPLY]


@pytest.mark.parametrize("reply", [REPLY, "Grüße 👋🏽"])
async def test_logprobs_are_parallel_lists_whose_offsets_point_into_the_text(served: Served, reply: str) -> None:
    served.engine.reply = served.gateway.renderer.encode(reply)
    request: dict[str, Any] = {"model": "tiny", "prompt": "x", "logprobs": 2, "max_tokens": 50}
    logprobs = (await served.client.completions.create(**request)).choices[0].logprobs
    assert (
        len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    )
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert "\ufffd" in token or reply[offset:].startswith(token)
    streamed: list[int] = []
    async for chunk in await served.client.completions.create(**request, stream=True):
        streamed += chunk.choices[0].logprobs.text_offset
    assert streamed == logprobs.text_offset


async def test_a_stream(served: Served) -> None:
    stream = await served.client.completions.create(
        model="tiny", prompt="x", stream=True, max_tokens=50, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == REPLY
    assert present(chunks[-1].usage).prompt_tokens == 1


@pytest.mark.parametrize("extra", [{"suffix": "x"}, {"best_of": 3}])
async def test_what_is_not_supported_is_refused_by_name(served: Served, extra: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.completions.create(model="tiny", prompt="x", **extra)
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param == next(iter(extra))
