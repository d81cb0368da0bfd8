"""Functions and calls of them in prompts: by the base's own template, or written out as text."""

from __future__ import annotations

import json
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from tunery.plugins.data.render.examples import RenderedExample
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.errors import InvalidInput

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a town.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather in Köln?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
    {"role": "tool", "content": "21", "tool_call_id": "call_1"},
    {"role": "tool", "content": "22", "tool_call_id": "call_2"},
    {"role": "assistant", "content": "Mild."},
    {"role": "user", "content": "Thanks"},
]
CALL_TEXT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'

HERMES = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools><|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for message in messages %}"
    "{% if message.tool_calls %}[TOOL_CALLS] {% for call in message.tool_calls %}{% if call.id | length != 9 %}"
    "{{ raise_exception('ids have nine characters') }}{% endif %}{{ call.id }}{% endfor %}"
    "{% elif message.tool_call_id %}[RESULT {{ message.tool_call_id }}]{% endif %}{{ message.content }}{% endfor %}"
)
LLAMA = '{% if tools %}{{ tools | tojson }} Answer with {"name": …, "parameters": …}.{% endif %}{{ messages | tojson }}'


def with_template(base: Path, folder: Path, template: str | None) -> Renderer:
    shutil.copytree(base, folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return Renderer(folder)


@pytest.mark.parametrize(
    ("template", "takes", "style"),
    [(None, False, "hermes"), (HERMES, True, "hermes"), (MISTRAL, True, "mistral"), (LLAMA, True, "llama")],
)
def test_what_a_template_knows_of_functions(
    tiny_base_folder: Path, tmp_path: Path, template: str | None, takes: bool, style: str
) -> None:
    renderer = with_template(tiny_base_folder, tmp_path / "base", template)
    assert (renderer.takes_tools, renderer.call_style) == (takes, style)


def test_a_template_that_knows_functions_gets_them_as_they_are(tiny_base_folder: Path, tmp_path: Path) -> None:
    renderer = with_template(tiny_base_folder, tmp_path / "base", HERMES)
    text = renderer.decode(renderer.prompt_ids(TALK, tools=[WEATHER]), skip_special=False)
    assert text.startswith(f"<|im_start|>system\n<tools>{json.dumps(WEATHER)}</tools><|im_end|>")
    assert text.count(json.dumps(CALL["function"], ensure_ascii=False)) == 2
    assert "<|im_start|>tool\n21<|im_end|>" in text


def test_a_template_that_does_not_gets_the_same_as_text(tiny_base_folder: Path) -> None:
    renderer = Renderer(tiny_base_folder)
    text = renderer.decode(renderer.prompt_ids(TALK, tools=[WEATHER]), skip_special=False)
    system, _, rest = text.partition("<|im_end|>\n")
    assert system.startswith("<|im_start|>system\n")
    assert f"<tools>\n{json.dumps(WEATHER)}\n</tools>" in system
    assert '<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call>' in system
    assert rest == (
        "<|im_start|>user\nWeather in Köln?<|im_end|>\n"
        f"<|im_start|>assistant\n{CALL_TEXT}\n{CALL_TEXT}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n21\n</tool_response>\n<tool_response>\n22\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nMild.<|im_end|>\n<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_own_system_message_stays_the_only_one(tiny_base_folder: Path) -> None:
    renderer = Renderer(tiny_base_folder)
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = renderer.decode(renderer.prompt_ids(talk, tools=[WEATHER]), skip_special=False)
    assert text.count("<|im_start|>system") == 1
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou may call functions")


def test_without_functions_nothing_is_written_out(tiny_base_folder: Path) -> None:
    renderer = Renderer(tiny_base_folder)
    talk = [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "21"}]
    assert "<|im_start|>tool\n21<|im_end|>" in renderer.decode(renderer.prompt_ids(talk), skip_special=False)
    assert renderer.prompt_ids(talk, tools=[]) == renderer.prompt_ids(talk)


def test_calls_of_earlier_turns_are_written_out_though_no_function_is_offered_now(tiny_base_folder: Path) -> None:
    renderer = Renderer(tiny_base_folder)
    text = renderer.decode(renderer.prompt_ids(TALK), skip_special=False)
    assert CALL_TEXT in text
    assert "system" not in text


def test_mistrals_templates_get_the_ids_they_insist_on(tiny_base_folder: Path, tmp_path: Path) -> None:
    renderer = with_template(tiny_base_folder, tmp_path / "base", MISTRAL)
    text = renderer.decode(renderer.prompt_ids(TALK, tools=[WEATHER]), skip_special=False)
    first = text.split("[TOOL_CALLS] ")[1][:9]
    assert first.isalnum()
    assert f"[RESULT {first}]21" in text


def test_marks_that_are_control_tokens_are_known_by_id(tiny_base_folder: Path, tmp_path: Path) -> None:
    assert Renderer(tiny_base_folder).control_ids(("[TOOL_CALLS]", "<tool_call>")) == {}
    shutil.copytree(tiny_base_folder, tmp_path / "base")
    tokenizer = Tokenizer.from_file(str(tiny_base_folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    tokenizer.save(str(tmp_path / "base" / "tokenizer.json"))
    renderer = Renderer(tmp_path / "base")
    (number,) = renderer.control_ids(("[TOOL_CALLS]", "<tool_call>")).values()
    assert renderer.token_bytes(number) == b"[TOOL_CALLS]"
    assert renderer.is_control(number)


# -- training ----------------------------------------------------------------------------------------------------------

CALLING = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ '[TOOL_CALLS]' + (call.function | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def trained_texts(renderer: Renderer, example: RenderedExample) -> list[str]:
    runs = groupby(zip(example.ids, example.trained, strict=True), key=lambda pair: pair[1])
    return [renderer.decode([n for n, _ in run], skip_special=False) for trained, run in runs if trained]


@pytest.mark.parametrize("content", ["", "Let me look."])
@pytest.mark.parametrize("template", [None, HERMES, CALLING])
def test_calls_are_trained_after_the_prompt_that_serving_sends(
    tiny_base_folder: Path, tmp_path: Path, template: str | None, content: str
) -> None:
    folder = tmp_path / "base"
    renderer = with_template(tiny_base_folder, folder, template)
    if template == CALLING:  # the mark of a call is a control token of its own, which ends nothing
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True, normalized=False)])
        tokenizer.save(str(folder / "tokenizer.json"))
        renderer = Renderer(folder)
    talk = [TALK[0], {**TALK[1], "content": content}, *TALK[2:5]]
    (example,) = renderer.examples(talk, tools=[WEATHER])
    call, answer = trained_texts(renderer, example)
    assert answer == "Mild.<|im_end|>"
    assert call.startswith(content)
    assert call.count("get_weather") == 2
    assert call.endswith("<|im_end|>")
    begin = example.trained.index(True)
    assert renderer.prompt_ids(talk[:1], tools=[WEATHER]) == example.ids[:begin]
    last = len(example.ids) - len(renderer.encode(answer))
    assert renderer.prompt_ids(talk[:4], tools=[WEATHER]) == example.ids[:last]


@pytest.mark.parametrize("template", [None, HERMES])
def test_answers_of_weight_0_are_read_and_not_trained(
    tiny_base_folder: Path, tmp_path: Path, template: str | None
) -> None:
    renderer = with_template(tiny_base_folder, tmp_path / "base", template)
    talk = [TALK[0], {**TALK[1], "weight": 0}, *TALK[2:4], {**TALK[4], "weight": 1}]
    (example,) = renderer.examples(talk, tools=[WEATHER])
    plain = [{name: item for name, item in message.items() if name != "weight"} for message in talk]
    assert trained_texts(renderer, example) == ["Mild.<|im_end|>"]
    assert renderer.examples(plain, tools=[WEATHER])[0].ids == example.ids
    with pytest.raises(InvalidInput) as caught:
        renderer.examples([{**message, "weight": 0} for message in talk])
    assert caught.value.code == "no_trainable_token"


def test_a_template_that_shows_each_answer_another_prompt_trains_those_of_weight(
    tiny_base_folder: Path, tmp_path: Path
) -> None:
    forgetful = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] != 'assistant' or loop.last %}"
        "{{ m['content'] }}{% else %}…{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    renderer = with_template(tiny_base_folder, tmp_path / "base", forgetful)
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "one", "weight": 0},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "three"},
    ]
    examples = renderer.examples(talk)
    assert [trained_texts(renderer, example) for example in examples] == [["two<|im_end|>"], ["three<|im_end|>"]]
