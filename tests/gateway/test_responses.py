"""The Responses API of real servers: two on one home, one that is killed, and the small base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.gateway.serve_process import TINY, start_server
from tunery.registry.home import Home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class City(BaseModel):
    name: str
    is_capital: bool


def test_a_stored_response_is_continued_by_another_server_and_after_a_kill(
    tmp_path: Path, tiny_base_folder: Path
) -> None:
    home, model = Home(tmp_path / "home"), tiny_base_folder.name
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with start_server(tmp_path / "b", home, tiny_base_folder, *TINY, "--no-worker") as other:
        with start_server(tmp_path / "a", home, tiny_base_folder, *TINY, "--no-worker") as one:
            first = one.client.responses.create(model=model, input="Hi", store=True, max_output_tokens=4)
            assert other.client.responses.retrieve(first.id).to_dict() == first.to_dict()
            second = other.client.responses.create(
                model=model, input="And?", store=True, max_output_tokens=4, previous_response_id=first.id
            )
        with start_server(tmp_path / "a", home, tiny_base_folder, *TINY, "--no-worker") as again:
            assert again.client.responses.retrieve(second.id).to_dict() == second.to_dict()
            again.client.responses.delete(first.id)
            items = other.client.responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in items] == ["message"] * 3


def test_the_small_base_gives_the_tokens_that_it_gives_in_chat(tmp_path: Path, base_folder: Path) -> None:
    with start_server(tmp_path, Home(tmp_path / "home"), base_folder, "--dtype", "float32", "--no-worker") as server:
        model, client = base_folder.name, server.client
        messages: list[ChatCompletionMessageParam] = [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": "What is the capital of France?"},
        ]
        chat = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=40)
        said = chat.choices[0].message.content
        first = client.responses.create(
            model=model, instructions="Answer in one sentence.", input="What is the capital of France?", temperature=0,
            max_output_tokens=40, store=True,
        )  # fmt: skip
        assert first.output_text == said
        assert first.usage is not None
        assert chat.usage is not None
        assert (first.usage.input_tokens, first.usage.output_tokens) == (
            chat.usage.prompt_tokens,
            chat.usage.completion_tokens,
        )
        with client.responses.stream(
            model=model, instructions="Answer in one sentence.", input="And of Spain?", temperature=0,
            max_output_tokens=40, previous_response_id=first.id,
        ) as stream:  # fmt: skip
            pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
            second = stream.get_final_response()
        assert "".join(pieces) == second.output_text
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "And of Spain?"}]
        chat = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=40)
        assert second.output_text == chat.choices[0].message.content
        print(json.dumps([first.output_text, second.output_text], ensure_ascii=False))
        parsed = client.responses.parse(
            model=model, input="Name a city in Italy.", text_format=City, max_output_tokens=60, temperature=0
        )
        assert parsed.output_parsed is not None
        print(parsed.output_text)
