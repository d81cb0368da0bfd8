"""Log-probabilities of the prompt: echo with logprobs, and vLLM's prompt_logprobs."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.api.conftest import REPLY, Served
from tests.narrowing import present

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


async def test_echo_with_logprobs_begins_with_the_prompts(served: Served) -> None:
    prompt = "Grüße: "
    answer = await served.client.completions.create(model="tiny", prompt=prompt, echo=True, logprobs=2, max_tokens=50)
    (choice,) = answer.choices
    assert choice.text == prompt + REPLY
    logprobs = present(choice.logprobs)
    scores, tops = present(logprobs.token_logprobs), present(logprobs.top_logprobs)
    count = len(served.gateway.renderer.encode(prompt))
    assert scores[:count] == [None] + [-0.25] * (count - 1)
    assert set(scores[count:]) == {-0.5}
    assert tops[0] is None
    assert all(tops[1:])
    for token, offset in zip(present(logprobs.tokens), present(logprobs.text_offset), strict=True):
        assert "\ufffd" in token or choice.text[offset:].startswith(token)


async def test_a_stream_has_the_same_lists(served: Served) -> None:
    request: dict[str, Any] = {"model": "tiny", "prompt": ["Say: ", "x"], "echo": True, "logprobs": 1, "max_tokens": 50}
    whole = await served.client.completions.create(**request)
    lists: dict[int, dict[str, list[Any]]] = {}
    async for chunk in await served.client.completions.create(**request, stream=True):
        (choice,) = chunk.choices
        for name, values in choice.logprobs.model_dump().items():
            lists.setdefault(choice.index, {}).setdefault(name, []).extend(values)
    assert [lists[index] for index in range(2)] == [choice.logprobs.model_dump() for choice in whole.choices]


async def test_control_tokens_take_no_place_in_the_echoed_text(served: Served) -> None:
    prompt = [1, *served.gateway.renderer.encode("ab")]
    answer = await served.client.completions.create(model="tiny", prompt=prompt, echo=True, logprobs=0, max_tokens=50)
    (choice,) = answer.choices
    assert choice.text == "ab" + REPLY
    logprobs = present(choice.logprobs)
    assert present(logprobs.tokens)[:2] == ["<|im_start|>", "a"]
    assert present(logprobs.text_offset)[:3] == [0, 0, 1]


async def test_no_tokens_at_all_but_the_prompts_scores(served: Served) -> None:
    request: dict[str, Any] = {"model": "tiny", "prompt": "Say: ", "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = await served.client.completions.create(**request)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("Say: ", "length")
    assert len(choice.logprobs.tokens) == answer.usage.prompt_tokens
    assert answer.usage.completion_tokens == 0
    assert served.engine.requests[0].sampling.max_tokens == 1
    chunks = [chunk async for chunk in await served.client.completions.create(**request, stream=True)]
    assert [chunk.choices[0].text for chunk in chunks] == ["Say: "]
    assert served.engine.cancelled == []


async def test_no_tokens_and_nothing_to_show_for_it_is_a_mistake(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="no answer") as caught:
        await served.client.completions.create(model="tiny", prompt="x", max_tokens=0)
    assert caught.value.param == "max_tokens"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("/v1/completions", {"prompt": "ab cd"}),
        ("/v1/completions", {"prompt": "ab cd", "echo": True, "logprobs": 0}),
        ("/v1/chat/completions", {"messages": MESSAGES}),
    ],
)
async def test_vllms_prompt_logprobs(served: Served, path: str, extra: dict[str, Any]) -> None:
    body = {"model": "tiny", "prompt_logprobs": 2, "max_tokens": 3, **extra}
    (choice,) = (await served.post(path, body)).json()["choices"]
    prompt = served.engine.requests[0].prompt
    first, *others = choice["prompt_logprobs"]
    assert first is None
    assert len(others) == len(prompt) - 1
    for token, place in zip(prompt[1:], others, strict=True):
        assert place[str(token)]["logprob"] == -0.25
        assert place[str(token)]["decoded_token"] == served.gateway.renderer.token_bytes(token).decode(errors="replace")
        assert place[str(token + 1)]["logprob"] == -1.5
    assert served.engine.requests[0].sampling.prompt_logprobs == 2


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_stream_has_them_once(served: Served, path: str) -> None:
    asked = {"messages": MESSAGES} if "chat" in path else {"prompt": "ab"}
    body = {"model": "tiny", **asked, "prompt_logprobs": 0, "stream": True, "max_tokens": 5}
    events = (await served.post(path, body)).text.split("\n\n")
    assert ["prompt_logprobs" in event for event in events if '"choices"' in event][:3] == [True, False, False]


async def test_nobody_gets_them_without_asking(served: Served) -> None:
    response = await served.post("/v1/completions", {"model": "tiny", "prompt": "x"})
    assert "prompt_logprobs" not in response.text
    assert served.engine.requests[0].sampling.prompt_logprobs is None


async def test_usage_says_what_was_cached(served: Served) -> None:
    served.engine.cached = 3
    chat = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, n=2)
    assert present(present(chat.usage).prompt_tokens_details).cached_tokens == 3
    raw = await served.client.completions.create(model="tiny", prompt=["a b c d", "e f g h"], max_tokens=2)
    assert present(present(raw.usage).prompt_tokens_details).cached_tokens == 6
