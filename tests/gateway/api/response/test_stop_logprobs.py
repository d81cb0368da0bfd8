"""Log-probabilities cover exactly the shown text, without stop strings, on both endpoints, whole and streamed."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.api.conftest import Served
from tests.narrowing import present

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
REPLY = "One two, three stop four."
CASES: list[list[str] | None] = [
    None,
    ["zzz"],
    ["stop"],
    ["e st"],
    ["three stop four"],
    ["One"],
    ["."],
    ["two, thr", "x"],
]


def cut(stop: list[str] | None) -> str:
    ends = [at for one in stop or () if (at := REPLY.find(one)) >= 0]
    return REPLY[: min(ends, default=len(REPLY))]


def spelled(served: Served, stop: list[str] | None) -> list[str]:
    """The tokens that begin within the text."""
    renderer, kept, begun = served.gateway.renderer, [], 0
    for token in renderer.encode(REPLY):
        text = renderer.token_bytes(token).decode()
        if begun < len(cut(stop)):
            kept.append(text)
        begun += len(text)
    return kept


async def chat(served: Served, *, stream: bool, **options: Any) -> tuple[str, list[str]]:
    completions = served.client.chat.completions
    if not stream:
        choice = (await completions.create(model="tiny", messages=MESSAGES, logprobs=True, **options)).choices[0]
        return choice.message.content or "", [entry.token for entry in present(present(choice.logprobs).content)]
    text, tokens = "", list[str]()
    async for chunk in await completions.create(model="tiny", messages=MESSAGES, logprobs=True, stream=True, **options):
        (piece,) = chunk.choices
        text += piece.delta.content or ""
        tokens += [entry.token for entry in (present(piece.logprobs.content) if piece.logprobs else ())]
    return text, tokens


async def completion(served: Served, *, stream: bool, **options: Any) -> tuple[str, list[str]]:
    completions = served.client.completions
    if not stream:
        choice = (await completions.create(model="tiny", prompt="x", logprobs=1, max_tokens=99, **options)).choices[0]
        return choice.text, choice.logprobs.tokens
    text, tokens = "", list[str]()
    async for chunk in await completions.create(
        model="tiny", prompt="x", logprobs=1, max_tokens=99, stream=True, **options
    ):
        (choice,) = chunk.choices
        text += choice.text
        tokens += choice.logprobs.tokens
    return text, tokens


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("send", [chat, completion])
async def test_no_token_of_a_stop_string_is_listed(served: Served, send: Any, stream: bool) -> None:
    served.says(REPLY)
    for stop in CASES:
        assert await send(served, stream=stream, stop=stop) == (cut(stop), spelled(served, stop)), stop


async def test_every_token_of_half_characters_and_of_nothing_is_listed(served: Served) -> None:
    ids = served.gateway.renderer.encode("é🙂")
    assert len(ids) > 2
    served.engine.reply = [*ids, 0]  # a control token, which is no text
    for stream in (False, True):
        _, tokens = await completion(served, stream=stream)
        assert len(tokens) == len(ids) + 1
