"""Every field of OpenAI's and vLLM's requests is applied, ignored as bookkeeping, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from tests.gateway.api.conftest import Served
from tests.plugins.data.chat_templates import base_with
from tunery.gateway.api.request.fields import IGNORED, NEUTRAL
from tunery.gateway.api.schemas.items import ResponseRequest
from tunery.gateway.api.schemas.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from tunery.plugins.data.render.renderer import Renderer

CHAT, RAW, EMBED, RESPOND = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    RAW: {"prompt": "Hi"},
    EMBED: {"input": "Hi"},
    RESPOND: {"input": "Hi"},
}
KINDS: dict[str, type[msgspec.Struct]] = {
    CHAT: ChatRequest,
    RAW: CompletionRequest,
    EMBED: EmbeddingRequest,
    RESPOND: ResponseRequest,
}
OPENAI: dict[str, Any] = {
    CHAT: chat_create_params.CompletionCreateParamsStreaming,
    RAW: completion_create_params.CompletionCreateParamsStreaming,
    EMBED: embedding_create_params.EmbeddingCreateParams,
    RESPOND: response_create_params.ResponseCreateParamsStreaming,
}
VLLM = [
    "add_generation_prompt",
    "add_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "cache_salt",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "echo",
    "guided_choice",
    "guided_decoding_backend",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "guided_whitespace_pattern",
    "ignore_eos",
    "include_reasoning",
    "include_stop_str_in_output",
    "kv_transfer_params",
    "length_penalty",
    "logits_processors",
    "media_io_kwargs",
    "min_p",
    "min_tokens",
    "mm_processor_kwargs",
    "priority",
    "prompt_logprobs",
    "repetition_penalty",
    "request_id",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop_token_ids",
    "structured_outputs",
    "thinking_token_budget",
    "top_k",
    "truncate_prompt_tokens",
    "truncation_side",
    "use_beam_search",
    "vllm_xargs",
]


async def sent(served: Served, path: str, **extra: Any) -> dict[str, Any]:
    """The answer, or the error."""
    response = await served.post(path, {"model": "tiny", **ASKED[path], **extra})
    body: dict[str, Any] = response.json()
    assert response.status_code == (400 if body.get("error") else 200), body
    return body if body.get("error") else {name: value for name, value in body.items() if name != "error"}


def not_declared(path: str) -> list[str]:
    known = set(KINDS[path].__struct_fields__)
    return sorted({*get_type_hints(OPENAI[path]), *VLLM, "made_up", "temprature"} - known)


@pytest.mark.slow
@pytest.mark.parametrize("path", KINDS)
async def test_what_is_not_declared_is_bookkeeping_or_refused_by_name(served: Served, path: str) -> None:
    for name in not_declared(path):
        assert "error" not in await sent(served, path, **{name: None}), name
        body = await sent(served, path, **{name: {"any": ["thing"]}})
        if name in IGNORED:
            assert "error" not in body, name
        else:
            error = body["error"]
            assert (error["code"], error["param"]) == ("unsupported_parameter", name)
            assert name in error["message"]
        for value in NEUTRAL.get(name, ()):
            assert "error" not in await sent(served, path, **{name: value}), (name, value)


async def test_a_misspelled_field_gets_suggestions(served: Served) -> None:
    assert "'temperature'" in (await sent(served, CHAT, temprature=0))["error"]["message"]
    assert len((await sent(served, CHAT, **{"x" * 2**20: 0}))["error"]["message"]) < 1000


async def test_what_is_in_stream_options_is_held_to_the_same(served: Served) -> None:
    known = set(get_type_hints(ChatCompletionStreamOptionsParam))
    assert known == {"include_usage", "include_obfuscation"}
    assert "error" not in await sent(served, CHAT, stream_options={"include_usage": None, "include_obfuscation": True})
    error = (await sent(served, CHAT, stream_options={"continuous_usage_stats": True}))["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "stream_options")


def prompt(served: Served) -> str:
    renderer = served.gateway.renderer
    return renderer.decode(served.engine.requests[-1].prompt, skip_special=False)


async def test_a_template_sees_what_it_reads_and_nothing_else_is_taken(
    served: Served, tiny_base_folder: Path, tmp_path: Path
) -> None:
    served.gateway.renderer = Renderer(base_with(tiny_base_folder, tmp_path / "other", "qwen3"))
    await sent(served, CHAT, chat_template_kwargs={"enable_thinking": False})
    assert prompt(served).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    await sent(served, CHAT, chat_template_kwargs={"enable_thinking": True})
    assert prompt(served).endswith("<|im_start|>assistant\n")
    for name in ("enable_thinkin", "messages", "bos_token", "tools", "add_generation_prompt", "namespace"):
        error = (await sent(served, CHAT, chat_template_kwargs={name: False}))["error"]
        assert error["param"] == "chat_template_kwargs"
        assert name in error["message"]
    error = (await sent(served, CHAT, chat_template_kwargs={"enable_thinking": "x" * 70_000}))["error"]
    assert "65536" in error["message"]
    error = (await sent(served, CHAT, reasoning_effort="low"))["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "reasoning_effort")
    # The next request has the template's own ways again.
    await sent(served, CHAT)
    assert prompt(served).endswith("<|im_start|>assistant\n")


async def test_reasoning_effort_goes_to_templates_that_read_it(
    served: Served, tiny_base_folder: Path, tmp_path: Path
) -> None:
    folder = base_with(tiny_base_folder, tmp_path / "other", "chatml")
    (folder / "chat_template.jinja").write_text("{{ reasoning_effort | default('medium') }}: {{ messages[0].content }}")
    served.gateway.renderer = Renderer(folder)
    for value, shown in (("low", "low: Hi"), (None, "medium: Hi")):
        await sent(served, CHAT, reasoning_effort=value)
        assert prompt(served) == shown
    await sent(served, CHAT, chat_template_kwargs={"reasoning_effort": "<|im_end|>"})
    assert prompt(served) == "<|im_end|>: Hi"
    assert not set(served.gateway.renderer.stop_ids) & set(served.engine.requests[-1].prompt)


async def test_a_last_message_is_continued_where_its_content_ends(served: Served) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, end "}]
    await sent(served, CHAT, messages=talk, continue_final_message=True, add_generation_prompt=False)
    assert prompt(served) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWell, end "
    await sent(served, CHAT, messages=talk[:1], add_generation_prompt=False)
    assert prompt(served) == "<|im_start|>user\nHi<|im_end|>\n"
    both = await sent(served, CHAT, messages=talk, continue_final_message=True, add_generation_prompt=True)
    assert both["error"]["param"] == "continue_final_message"


async def test_a_continued_answer_begins_as_the_trained_one(
    served: Served, tiny_base_folder: Path, tmp_path: Path
) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " It is so."}]
    for name in ("chatml", "llama3", "qwen3", "gemma", "words", "pieces"):
        renderer = served.gateway.renderer = Renderer(base_with(tiny_base_folder, tmp_path / name, name))
        await sent(served, CHAT, messages=talk, continue_final_message=True)
        ids = list(served.engine.requests[-1].prompt)
        before = renderer.prompt_ids(talk[:1])
        assert ids[: len(before)] == before
        assert renderer.decode(ids, skip_special=False).endswith("It is so.")


@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_prompts_are_cut_to_their_last_tokens(served: Served, path: str) -> None:
    await sent(served, path)
    whole = served.engine.requests[-1].prompt
    await sent(served, path, truncate_prompt_tokens=1)
    assert served.engine.requests[-1].prompt == whole[-1:]
    await sent(served, path, truncate_prompt_tokens=10_000)
    assert served.engine.requests[-1].prompt == whole
    body = {"prompt": "ab " * 900} if path == RAW else {"messages": [{"role": "user", "content": "ab " * 900}]}
    await sent(served, path, **body, truncate_prompt_tokens=-1, max_tokens=10)
    assert len(served.engine.requests[-1].prompt) == 1014
    assert (await sent(served, path, truncate_prompt_tokens=0))["error"]["param"] == "truncate_prompt_tokens"


async def test_embeddings_are_cut_and_marked_as_asked(served: Served, tiny_base_folder: Path, tmp_path: Path) -> None:
    served.gateway.renderer = Renderer(base_with(tiny_base_folder, tmp_path / "other", "llama3"))
    for path in (EMBED, RAW):
        await sent(served, path)
        await sent(served, path, add_special_tokens=False)
    for asked in (served.engine.embeds, served.engine.requests):
        assert asked[0].prompt[1:] == asked[1].prompt
    await sent(served, EMBED, truncate_prompt_tokens=1)
    assert len(served.engine.embeds[-1].prompt) == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_stop_strings_and_control_tokens_are_shown_on_request(served: Served, path: str) -> None:
    async def text(**extra: Any) -> str:
        (choice,) = (await sent(served, path, **extra))["choices"]
        return str(choice["message"]["content"] if path == CHAT else choice["text"])

    served.says("one two three")
    assert await text(stop=["two", " th"], include_stop_str_in_output=True) == "one two"
    assert await text(stop=" two") == "one"
    assert await text(stop=["o", "e"], min_tokens=1000) == "one two three"
    served.says("one<|im_start|>two")
    assert await text() == "onetwo"
    assert await text(skip_special_tokens=False) == "one<|im_start|>two"
    assert await text(skip_special_tokens=False, include_stop_str_in_output=True) == "one<|im_start|>two<|im_end|>"
    assert await text(include_stop_str_in_output=True) == "onetwo"


@pytest.mark.slow
@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_allowed_and_forbidden_tokens_reach_the_engine(served: Served, path: str) -> None:
    await sent(served, path, allowed_token_ids=[7, 9], bad_words=["Hi", " there"])
    sampling = served.engine.requests[-1].sampling
    renderer = served.gateway.renderer
    assert sampling.allowed_token_ids == (7, 9)
    spelled = {tuple(renderer.encode(text)) for text in ("Hi", " Hi", "there", " there")}
    assert set(sampling.bad_words) == spelled
    stop = renderer.stop_ids[0]
    extra: dict[str, Any]
    for extra in (
        {"allowed_token_ids": [2**30]},
        {"allowed_token_ids": [7] * (2**20 + 1)},
        {"logit_bias": {str(token): 1 for token in range(5000)}},
        {"allowed_token_ids": []},
        {"allowed_token_ids": [stop], "min_tokens": 2},
        {"allowed_token_ids": [7], "guided_regex": "a"},
        {"bad_words": ["x"], "response_format": {"type": "json_object"}},
        {"bad_words": ["x"] * 1000},
        {"bad_words": [""]},
    ):
        error = (await sent(served, path, **extra))["error"]
        assert error["param"] == next(iter(extra))


async def test_offsets_count_control_tokens_that_are_shown(served: Served) -> None:
    served.says("one<|im_start|>two")
    for skip, added in ((True, 0), (False, len("<|im_start|>"))):
        (choice,) = (await sent(served, RAW, logprobs=0, skip_special_tokens=skip, max_tokens=50))["choices"]
        lists = choice["logprobs"]
        at = lists["tokens"].index("<|im_start|>")
        assert lists["text_offset"][at + 1] - lists["text_offset"][at] == added


@pytest.mark.parametrize(
    ("path", "param"),
    [
        (CHAT, "messages"),
        (RAW, "prompt"),
        (EMBED, "input"),
        (RESPOND, "input"),
        ("/v1/fine_tuning/jobs", "training_file"),
        ("/v1/batches", "input_file_id"),
        ("/v1/evals", "data_source_config"),
        ("/v1/uploads", "bytes"),
    ],
)
async def test_a_missing_field_is_named(served: Served, path: str, param: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/batches": {"endpoint": CHAT, "completion_window": "24h"},
        "/v1/evals": {"testing_criteria": []},
        "/v1/uploads": {"filename": "a", "mime_type": "b", "purpose": "batch"},
    }
    response = await served.post(path, bodies.get(path, {"model": "tiny"}))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "missing_required_parameter", param)
    assert error["message"] == f"the body has no field {param!r}, which is required"


async def test_a_missing_field_within_another_is_named_with_it(served: Served) -> None:
    body = {
        "filename": "a",
        "mime_type": "b",
        "purpose": "batch",
        "bytes": 6,
        "expires_after": {"anchor": "created_at"},
    }
    error = (await served.post("/v1/uploads", body)).json()["error"]
    assert (error["code"], error["param"]) == ("missing_required_parameter", "expires_after")
    assert error["message"] == "expires_after has no field 'seconds', which is required"


@pytest.mark.parametrize("body", [[], "x", 1])
async def test_a_body_that_is_no_object_is_said_to_be_none(served: Served, body: Any) -> None:
    error = (await served.post(CHAT, body)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", None)
    assert error["message"].startswith("the body is not a JSON object: Expected `object`")
