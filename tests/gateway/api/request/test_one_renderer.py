"""The prompt before every trained answer is the prompt served for it: the same rows from a file and over HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.api.conftest import Served
from tests.plugins.data.chat_templates import TEMPLATES, base_with
from tunery.plugins.data.read.dataset import read_rows
from tunery.plugins.data.read.formats import BUILT_IN
from tunery.plugins.data.read.row import Row
from tunery.plugins.data.render.examples import RenderedExample
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.errors import InvalidInput

Message = dict[str, Any]

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": None, "strict": None,
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "default": None}}},
    },
}  # fmt: skip
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"arguments": '{"city": "Köln", "days": 1.0}', "name": "get_weather"},
}


def user(content: Any = "Hello there", **more: Any) -> Message:
    return {"role": "user", "content": content, **more}


def assistant(content: Any = "Yes.", **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"messages": [user(), assistant()]},
    "long": {"messages": [message for turn in range(12) for message in (user(f"ask {turn}"), assistant(f"tell {turn}"))]},
    "system": {"messages": [{"role": "system", "content": "Be kind."}, user(), assistant()]},
    "developer": {"messages": [{"role": "developer", "content": "Be kind."}, user(), assistant(), user("And?"), assistant("No.")]},
    "developer tools": {"messages": [{"role": "developer", "content": "Be kind."}, user(), assistant()], "tools": [TOOL]},
    "name": {"messages": [user(name="anna"), assistant(name="bot"), user("x", name="bob"), assistant("y")]},
    "null name": {"messages": [user(name=None), assistant(name=None, tool_calls=None), user("x"), assistant("y")]},
    "parts": {"messages": [user([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]), assistant([{"type": "text", "text": "c"}])]},
    "reasoning": {"messages": [user(), assistant(reasoning_content="Let me see."), user("x"), assistant("y", reasoning_content="Hm.")]},
    "think": {"messages": [user(), assistant("<think>\nHm\n</think>\n\nYes"), user("x"), assistant("<think>\n1\n</think>\n\ny")]},
    "white space": {"messages": [user(" a \n"), assistant("\n\n b "), user("\nc"), assistant("  d\n")]},
    "unicode": {"messages": [user("Grüße 世界 👩‍👩‍👧"), assistant("e\u0301 ﷺ"), user("\u200d"), assistant("…")]},
    "spelled": {"messages": [user("x<|im_end|>\n<s>[INST]"), assistant("the </s> token"), user("<|eot_id|>"), assistant("<end_of_turn> it is")]},
    "spelled late": {"messages": [user(" a"), assistant(" b"), user("c"), assistant("<|im_end|><s>")]},
    "weights": {"messages": [user(), assistant(" not this", weight=0), user("x"), assistant(" this", weight=1)]},
    "tools": {"messages": [user(), assistant()], "tools": [TOOL]},
    "calls": {
        "messages": [user(), assistant(None, tool_calls=[CALL]), {"role": "tool", "tool_call_id": "call_1", "content": "21"}, assistant("Mild.")],
        "tools": [TOOL],
    },
    "tool result in parts": {
        "messages": [
            user(), assistant("", tool_calls=[CALL]),
            {"role": "tool", "tool_call_id": "call_1", "name": "get_weather", "content": [{"type": "text", "text": "21"}]},
            assistant("Mild."), user("Thanks", name=None), assistant("Bye"),
        ],
    },
    "prompt-completion": {"prompt": " Say it", "completion": " it"},
    "preference": {"prompt": "Say it", "chosen": " it", "rejected": "no"},
    "preferences of talk": {
        "prompt": [user(name=None), assistant(" Hi"), user("Say it", name="anna")], "chosen": [assistant(" it")], "rejected": [assistant("no", name=None)],
    },
    "openai-preference": {
        "input": {"messages": [{"role": "developer", "content": "Short."}, user()], "tools": [TOOL]},
        "preferred_output": [assistant("Yes")], "non_preferred_output": [assistant("No")],
    },
}  # fmt: skip


UNTRAINED = {("names", "name")} | {(name, "reasoning") for name in TEMPLATES if name != "qwen3"}
"""An answer that has a name of its own, and reasoning that the template leaves out."""


@pytest.fixture(scope="module")
def renderers(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Renderer]:
    folder = tmp_path_factory.mktemp("templates")
    names = [*TEMPLATES, "whole"]
    return {name: Renderer(base_with(tiny_base_folder, folder / name, name)) for name in names}


def rows(folder: Path, shape: dict[str, Any]) -> list[Row]:
    (folder / "rows.jsonl").write_text(json.dumps(shape) + "\n")
    return read_rows(folder / "rows.jsonl", formats=BUILT_IN)


def asked(shape: dict[str, Any]) -> tuple[list[list[Message]], Any]:
    """The conversations of a row as a client writes them, and its tools."""
    if "messages" in shape:
        return [shape["messages"]], shape.get("tools")
    if "completion" in shape:
        return [[user(shape["prompt"]), assistant(shape["completion"])]], None
    if "input" in shape:
        talk, tools = shape["input"]["messages"], shape["input"].get("tools")
        return [[*talk, *shape[name]] for name in ("preferred_output", "non_preferred_output")], tools
    if isinstance(shape["prompt"], str):
        return [[user(shape["prompt"]), assistant(shape[name])] for name in ("chosen", "rejected")], None
    return [[*shape["prompt"], *shape[name]] for name in ("chosen", "rejected")], None


def before_answers(examples: Sequence[RenderedExample]) -> list[list[int]]:
    """What stands before each stretch of trained tokens."""
    prompts = []
    for example in examples:
        at = 0
        for trained, run in groupby(example.trained):
            if trained:
                prompts.append(example.ids[:at])
            at += len(list(run))
    return prompts


async def served_prompts(
    served: Served, client: httpx.AsyncClient, talk: list[Message], tools: Any, *, only_last: bool
) -> list[list[int]] | str:
    """The prompts that the engine is sent for each answer that is trained, or the refusal."""
    answers = [
        index for index, message in enumerate(talk) if message["role"] == "assistant" and message.get("weight", 1)
    ]
    prompts = []
    for index in answers[-1:] if only_last else answers:
        body = {"model": "tiny", "messages": talk[:index], "tools": tools}
        response = await client.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            return str(response.json()["error"]["message"])
        prompts.append(list(served.engine.requests[-1].prompt))
    return prompts


@pytest.mark.slow
async def test_every_shape_is_trained_as_it_is_served(
    served: Served, renderers: dict[str, Renderer], tmp_path: Path
) -> None:
    refusals = []
    async with httpx.AsyncClient(base_url=served.url) as client:
        for name, renderer in renderers.items():
            served.gateway.renderer = renderer
            for label, shape in SHAPES.items():
                (row,) = rows(tmp_path, shape)
                talks, tools = asked(shape)
                for talk, conversation in zip(talks, row.conversations, strict=True):
                    try:
                        trained: list[list[int]] | str = before_answers(
                            renderer.examples(conversation, tools=row.tools)
                        )
                    except InvalidInput as error:
                        trained = error.message
                    prompts = await served_prompts(served, client, talk, tools, only_last=row.rejected is not None)
                    if isinstance(trained, str):
                        refusals.append((name, label))
                        # Answers that no serving prompt could open are not trained; what comes
                        # before them may be served.
                        assert isinstance(prompts, str) or (name, label) in UNTRAINED, (name, label, trained)
                    else:
                        assert prompts == trained, (name, label)
    assert {label for name, label in refusals if name == "chatml"} == {"reasoning"}
    assert ("refuses", "system") in refusals
    assert ("refuses", "developer") in refusals
    assert ("qwen3", "reasoning") not in refusals


async def test_the_beginning_of_a_text_is_marked_once(served: Served, renderers: dict[str, Renderer]) -> None:
    for name in ("llama3", "gemma", "mistral", "words", "pieces"):
        renderer = served.gateway.renderer = renderers[name]
        (first,) = renderer.encode("<s>")
        await served.post("/v1/chat/completions", {"model": "tiny", "messages": [user()]})
        prompt = list(served.engine.requests[-1].prompt)
        assert prompt.count(first) == 1
        # A client that renders for itself sends the same text, mark included.
        text = renderer.decode(prompt, skip_special=False)
        await served.post("/v1/completions", {"model": "tiny", "prompt": text})
        assert list(served.engine.requests[-1].prompt) == prompt


async def test_null_is_nothing_and_a_name_is_shown_by_templates_that_know_names(
    served: Served, renderers: dict[str, Renderer]
) -> None:
    renderer = served.gateway.renderer = renderers["names"]
    for message, wanted in ((user(name="anna"), "user name=anna\n"), (user(name=None), "user\n"), (user(), "user\n")):
        await served.post("/v1/chat/completions", {"model": "tiny", "messages": [message]})
        text = renderer.decode(served.engine.requests[-1].prompt, skip_special=False)
        assert text.startswith(f"<|im_start|>{wanted}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "role"), [("chatml", "system"), ("developer", "rules")])
async def test_a_developer_is_the_system_of_templates_that_know_none(
    served: Served, renderers: dict[str, Renderer], name: str, role: str
) -> None:
    renderer = served.gateway.renderer = renderers[name]
    await served.post(
        "/v1/chat/completions", {"model": "tiny", "messages": [{"role": "developer", "content": "Be kind."}, user()]}
    )
    text = renderer.decode(served.engine.requests[-1].prompt, skip_special=False)
    assert text.startswith(f"<|im_start|>{role}\nBe kind.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "fragment"),
    [
        (user(prefix=True), "messages[0].prefix"),
        (user(refusal="no"), "messages[0].refusal"),
        (user(name=7), "messages[0].name"),
        (assistant("x", audio={"id": "a"}), "messages[0].audio"),
        (assistant("x", reasoning="Hm"), "reasoning_content"),
    ],
)
async def test_what_a_message_holds_and_no_template_renders_is_refused(
    served: Served, message: Message, fragment: str
) -> None:
    response = await served.post("/v1/chat/completions", {"model": "tiny", "messages": [message, user()]})
    assert response.status_code == 400
    assert fragment in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "messages"


async def test_an_answer_of_the_openai_client_is_a_message_as_it_is(served: Served) -> None:
    answer = await served.client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}])
    whole = answer.choices[0].message.model_dump()
    assert {"refusal", "annotations", "audio", "function_call", "tool_calls"} <= set(whole)
    extra: dict[str, Any]
    for extra in ({}, {"annotations": []}, {"parsed": {"a": 1}}):
        response = await served.post(
            "/v1/chat/completions", {"model": "tiny", "messages": [user(), whole | extra, user("More")]}
        )
        assert response.status_code == 200, response.text


async def test_without_a_template_a_pair_is_trained_as_its_text_is_continued(
    served: Served, tiny_base_folder: Path, tmp_path: Path
) -> None:
    for name in ("chatml", "pieces"):
        folder = base_with(tiny_base_folder, tmp_path / name, name)
        (folder / "chat_template.jinja").unlink()
        renderer = served.gateway.renderer = Renderer(folder)
        for prompt in ("Once upon", "Once ", "<s>Once", "Is it <|im_end|>?"):
            for shape in (
                {"prompt": prompt, "completion": " a time"},
                {"prompt": prompt, "chosen": " a", "rejected": "b"},
            ):
                (row,) = rows(tmp_path, shape)
                for conversation in row.conversations:
                    (before,) = before_answers(renderer.examples(conversation))
                    for path, asked in (
                        ("/v1/completions", {"prompt": prompt}),
                        ("/v1/chat/completions", {"messages": [user(prompt)]}),
                    ):
                        await served.post(path, {"model": "tiny", **asked})
                        assert list(served.engine.requests[-1].prompt) == before, (name, prompt)
