"""What a Responses request asks of the engine, and in which words it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.api.conftest import Served
from tests.plugins.data.chat_templates import base_with
from tunery.plugins.data.render.renderer import Renderer

TOOL = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}

AGENTS: dict[str, dict[str, Any]] = {
    "openai-agents": {
        "include": [], "tools": [], "store": False, "truncation": "disabled", "metadata": {"a": "b"}, "tool_choice": "auto",
        "prompt_cache_retention": "24h", "text": {"verbosity": "low"}, "reasoning": {"summary": "auto"},
    },
    "openai-agents with tools": {
        "tools": [{**TOOL, "strict": True, "description": "Look it up."}], "parallel_tool_calls": True, "tool_choice": "required",
    },
    "pydantic-ai": {
        "include": ["reasoning.encrypted_content"], "service_tier": "auto", "user": "jane", "prompt_cache_key": "k",
        "text": {"format": {"type": "json_schema", "name": "final", "schema": SCHEMA, "strict": True}, "verbosity": "medium"},
    },
    "LangChain": {
        "include": ["web_search_call.action.sources", "message.output_text.logprobs"], "top_logprobs": 1, "max_output_tokens": 20,
        "text": {"format": {"type": "text"}}, "stream": False, "truncation": "auto", "temperature": 0,
    },
    "LiteLLM": {"stream_options": {"include_usage": True}, "background": False, "max_tool_calls": 3, "safety_identifier": "x"},
    "Codex": {
        "instructions": "You are an agent.", "store": False, "parallel_tool_calls": True, "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "none"}, "prompt_cache_key": "session", "text": {"verbosity": "high"},
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Here."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}], "id": "msg_1"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA", "content": None},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}], "phase": "final_answer"},
            {"type": "message", "role": "user", "content": "Go on."},
        ],
    },
}  # fmt: skip


async def sent(served: Served, **extra: Any) -> dict[str, Any]:
    """The answer, or the error."""
    response = await served.post("/v1/responses", {"model": "tiny", "input": "Hi", **extra})
    body: dict[str, Any] = response.json()
    assert response.status_code == (400 if body["error"] else 200), body
    return body


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
async def test_what_agents_send_is_answered(served: Served, agent: str) -> None:
    for extra in ({}, {"stream": True}):
        response = await served.post("/v1/responses", {"model": "tiny", "input": "Hi", **AGENTS[agent], **extra})
        assert response.status_code == 200, response.text


async def test_every_option_reaches_the_engine(served: Served) -> None:
    await sent(
        served,
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=50,
        top_k=3,
        min_p=0.1,
        seed=7,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.2,
        top_logprobs=2,
    )
    (request,) = served.engine.requests
    chosen = request.sampling
    assert (chosen.temperature, chosen.top_p, chosen.top_k, chosen.min_p) == (0.5, 0.9, 3, 0.1)
    assert (chosen.seed, chosen.max_tokens, chosen.logprobs) == (7, 50, 2)
    assert (chosen.presence_penalty, chosen.frequency_penalty, chosen.repetition_penalty) == (1.0, -1.0, 1.2)
    assert (await sent(served, stop=" wor"))["output"][0]["content"][0]["text"] == "Hello,"


async def test_structure_and_tools_are_chats(served: Served) -> None:
    """The prompt and the constraint are those of the chat request that asks for the same."""
    named = {"type": "function", "name": "look_up"}
    schema = {"name": "x", "schema": SCHEMA, "strict": True}
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", **schema}}},
            {"response_format": {"type": "json_schema", "json_schema": schema}},
        ),
        ({"tool_choice": named}, {"tool_choice": {"type": "function", "function": {"name": "look_up"}}}),
        *(({"tool_choice": choice}, {"tool_choice": choice}) for choice in ("none", "auto", "required")),
        ({"tool_choice": "required", "parallel_tool_calls": True},) * 2,
    ]
    function = {name: TOOL[name] for name in ("name", "parameters")}
    chat_tool = {"type": "function", "function": {"name": "look_up", "description": "x", **function, "strict": True}}
    # A client may write the keys of a tool in any order.
    tool = {"strict": True, **TOOL, "description": "x"}
    for mine, chats in pairs:
        offered = {} if "text" in mine else {"tools": [tool]}
        answer = await sent(served, **mine, **offered, instructions="Be brief.")
        assert answer["tools"] == offered.get("tools", [])
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        body = {"model": "tiny", "messages": messages, **chats, **({"tools": [chat_tool]} if offered else {})}
        assert (await served.post("/v1/chat/completions", body)).status_code == 200
        one, other = served.engine.requests[-2:]
        assert (one.prompt, one.sampling) == (other.prompt, other.sampling), mine


async def test_the_adapter_is_named_as_in_chat(served: Served) -> None:
    for name in ("acme/a", "acme/b"):
        served.publish(name, seed=ord(name[-1]))
    for body in ({"model": "acme/a"}, {"adapter": "acme/a"}, {"model": "acme/a:0.5+acme/b"}):
        assert (await sent(served, **body))["system_fingerprint"].startswith("tunery-")
    assert [len(request.composition) for request in served.engine.requests] == [1, 1, 2]
    response = await served.post("/v1/responses", {"model": "acme/none", "input": "Hi"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_effort_goes_to_templates_that_read_it(served: Served, tiny_base_folder: Path, tmp_path: Path) -> None:
    error = (await sent(served, reasoning={"effort": "low"}))["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "reasoning")
    assert error["message"].startswith("reasoning.effort is not supported")
    folder = base_with(tiny_base_folder, tmp_path / "other", "chatml")
    (folder / "chat_template.jinja").write_text("{{ reasoning_effort | default('medium') }}: {{ messages[0].content }}")
    renderer = served.gateway.renderer = Renderer(folder)
    for effort, shown in (("low", "low: Hi"), ("none", "none: Hi"), (None, "medium: Hi")):
        answer = await sent(served, reasoning={"effort": effort})
        assert answer["reasoning"]["effort"] == effort
        assert renderer.decode(served.engine.requests[-1].prompt, skip_special=False) == shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "code", "param", "fragment"),
    [
        *(
            ({"tools": [{"type": kind}]}, "unsupported_tool", "tools", f"tools[0] is of type '{kind}'")
            for kind in ("web_search", "file_search", "code_interpreter", "mcp", "custom", "image_generation")
        ),
        ({"tools": ["x"]}, "unsupported_tool", "tools", "tools[0]"),
        ({"tools": [TOOL, TOOL]}, "invalid_input", "tools", "tools[1].name is 'look_up'"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "invalid_input", "tools", "tools[0].name is 'a b'"),
        ({"tools": [{**TOOL, "parameters": 1}]}, "invalid_input", "tools", "tools[0].parameters must be"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter", "tools", "tools[0].function is not"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "unsupported_parameter", "tools", "tools[0].defer_loading"),
        ({"tool_choice": "required"}, "invalid_input", "tool_choice", "needs tools"),
        ({"tools": [TOOL], "tool_choice": "some"}, "invalid_input", "tool_choice", "'some'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "invalid_input", "tool_choice", "not in tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "unsupported_tool_choice", "tool_choice", "'allowed_tools'"),
        ({"tool_choice": {"type": ["x"]}}, "unsupported_tool_choice", "tool_choice", ""),
        ({"text": {"format": {"type": "grammar"}}}, "invalid_input", "text", "text.format.type is 'grammar'"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "invalid_input", "text", "text.format.schema must be"),
        ({"text": {"format": {"type": ["x"]}}}, "invalid_input", "text", "text.format.type is"),
        ({"text": {"style": "x"}}, "unsupported_parameter", "text", "text.style is not supported"),
        ({"reasoning": {"mode": "pro"}}, "unsupported_parameter", "reasoning", "reasoning.mode is not supported"),
        ({"background": True}, "unsupported_parameter", "background", "wait for the answer"),
        ({"conversation": "conv_1"}, "unsupported_parameter", "conversation", "previous_response_id"),
        ({"include": ["x"]}, "invalid_value", "include", "x"),
        ({"input": []}, "invalid_input", "input", "no items"),
        ({"input": [{}] * 5000}, "invalid_input", "input", "the limit is 4096"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "unsupported_parameter", "messages", "messages is not supported"),
        ({"max_tokens": 5}, "unsupported_parameter", "max_tokens", "max_output_tokens"),
        ({"max_output_tokens": 5000}, "context_length_exceeded", "input", "in the input"),
        ({"chat_template_kwargs": {"nope": 1}}, "unknown_name", "chat_template_kwargs", "nope"),
        ({"stop": [""]}, "invalid_input", "stop", "empty"),
        ({"previous_response_id": "x" * 10_000}, "previous_response_not_found", "previous_response_id", "not found"),
    ],
)  # fmt: skip
async def test_what_is_refused_is_named(
    served: Served, extra: dict[str, Any], code: str, param: str, fragment: str
) -> None:
    for stream in (False, True):
        response = await served.post("/v1/responses", {"model": "tiny", "input": "Hi", **extra, "stream": stream})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, code, param), json.dumps(error)
        assert fragment in error["message"]
        assert len(error["message"]) < 1000
