"""A base's chat template is bounded in time and memory, whatever it does, and ordinary ones do not notice."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.plugins.data.chat_templates import TEMPLATES, WHOLE
from tunery.gateway.cli import main
from tunery.plugins.data.render import sandbox_limits
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.data.render.template import ChatTemplate
from tunery.registry.errors import InvalidInput

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}, {"role": "user", "content": "So?"}]
TENS = "{% for a in range(10) %}"
DOUBLING = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = AGAIN %}{% endfor %}{{ ns.x SHOWN }}"


def doubling(start: str, again: str, shown: str = "") -> str:
    return DOUBLING.replace("START", start).replace("AGAIN", again).replace("SHOWN", shown)


HOSTILE = {
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    "silent loops": "{% set n = namespace(v=0) %}" + "{% for a in range(9999) %}" * 3 + "{% set n.v = n.v + 1 %}" + "{% endfor %}" * 3,
    "many outputs": TENS * 7 + "{{ 'x' * 1000 }}" + "{% endfor %}" * 7,
    "outputs in a block": "{% set x %}" + "{% for a in range(9999) %}{{ 'x' * 100000 }}{% endfor %}{% endset %}{{ x | length }}",
    "outputs of a macro": "{% macro m() %}{% for a in range(9999) %}{{ 'x' * 100000 }}{% endfor %}{% endmacro %}{{ m() | length }}",
    "a text times a number": "{{ 'x' * 3000000000 }}",
    "a number times a text": "{{ 3000000000 * 'x' }}",
    "a list times a number": "{{ [1] * 3000000000 }}",
    "a power": "{{ 9 ** 999999999 }}",
    "squares": doubling("3", "ns.x * ns.x"),
    "doubled with +": doubling("'x'", "ns.x + ns.x"),
    "doubled with ~": doubling("'x'", "ns.x ~ ns.x"),
    "doubled with join": doubling("'x'", "[ns.x, ns.x] | join"),
    "doubled with format": doubling("'x'", "'%s%s' | format(ns.x, ns.x)"),
    "doubled with %": doubling("'x'", "'%s%s' % (ns.x, ns.x)"),
    "doubled with .format": doubling("'x'", "'{0}{0}'.format(ns.x)"),
    "doubled with replace": doubling("'x'", "'ab'.replace('a', ns.x).replace('b', ns.x)"),
    "doubled with a filter's replace": doubling("'x'", "'ab' | replace('a', ns.x) | replace('b', ns.x)"),
    "doubled with a block": doubling("'x'", "m(ns.x)").replace("{% set ns", "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns", 1),
    "doubled lists": doubling("[1]", "ns.x + ns.x", "| length"),
    "nested lists": doubling("[1]", "[ns.x, ns.x]"),
    "nested lists as JSON": doubling("[1]", "[ns.x, ns.x]", "| tojson"),
    "nested objects": doubling("{}", "{'a': ns.x, 'b': ns.x}"),
    "nested calls of dict": doubling("{}", "dict(a=ns.x, b=ns.x)"),
    "nested arguments": "{% set ns = namespace(x=(1,)) %}{% macro m() %}{% set ns.x = varargs %}{% endmacro %}"
    "{% for i in range(60) %}{{ m(ns.x, ns.x) }}{% endfor %}{{ ns.x }}",
    "branching calls": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(25) }}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}{% endfor %}",
    "a width": "{{ 'x'.ljust(3000000000) }}",
    "a filter's width": "{{ 'x' | center(3000000000) }}",
    "a format's width": "{{ '%3000000000d' % 1 }}",
    "a given width": "{{ '%*d' % (3000000000, 1) }}",
    "a width in braces": "{{ '{:3000000000}'.format(1) }}",
    "a given width in braces": "{{ '{:{}}'.format(1, 3000000000) }}",
    "widths": "{{ ('%9999d' * 99999) % (1,) }}",
    "indents": "{{ ('\n' * 100000) | indent(99999) }}",
    "wraps": "{{ ('a' * 100000) | wordwrap(1, wrapstring='x' * 100000) }}",
    "a batch": "{{ [1] | batch(3000000000, 0) | list | length }}",
    "slices": "{{ [1] | slice(3000000000) | list | length }}",
    "a precision": "{{ 1.5 | round(3000000000, 'floor') }}",
    "every letter replaced": "{{ ('a' * 100000).replace('a', 'b' * 100000) | length }}",
    "between all letters": "{{ ('b' * 100000).join('a' * 100000) | length }}",
    "tabs": "{{ ('\t' * 100000).expandtabs(100000) | length }}",
    "translated": "{{ ('a' * 100000).translate({97: 'b' * 100000}) | length }}",
    "through map": "{{ ['x'] | map('center', 3000000000) | list | length }}",
    "lipsum": "{{ lipsum(3000000) }}",
    "a long refusal": "{{ raise_exception('x' * 1000000) }}",
    "loops over contents": "{% for m in messages %}{% for a in m.content * 10000 %}{% for b in m.content * 10000 %}{% endfor %}{% endfor %}{% endfor %}",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_what_has_no_end_is_ended(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_limits, "MAX_STEPS", 50_000)
    template = ChatTemplate(HOSTILE[name], tokens={})
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput) as caught:
            template.render(TALK, add_generation_prompt=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(caught.value.message) < 1500
    assert peak < 20 * sandbox_limits.MAX_TEXT
    if caught.value.code == "template_limit":
        assert template.sha256[:12] in caught.value.message
    # The next rendering begins anew.
    assert ChatTemplate("{{ messages[0].content }}", tokens={}).render(TALK, add_generation_prompt=True) == "Hi"


def test_time_is_bounded_where_steps_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_limits, "MAX_SECONDS", 0.0)
    with pytest.raises(InvalidInput, match="0 seconds") as caught:
        ChatTemplate(2 * "{% for a in range(2000) %}{% endfor %}", tokens={}).render(TALK, add_generation_prompt=True)
    assert caught.value.code == "template_limit"


@pytest.mark.parametrize("name", [*TEMPLATES, "whole", "everything"])
def test_ordinary_templates_write_what_they_wrote(name: str) -> None:
    everything = (
        "{% set x = [1, (2, 'a')] %}{% set y = {'k': x, 'l': {}} %}{{ x }}{{ y }}{{ y | tojson }}{{ x ~ y ~ none ~ 1.5 }}"
        "{% for k, v in y | dictsort %}{{ loop.index }}{{ k }}{{ v }}{% if loop.last %}!{% endif %}{% endfor %}"
        "{% for a in 'abc' if a != 'b' %}{{ loop.revindex }}{{ a }}{% else %}none{% endfor %}{% for a in nothing %}{% else %}else{% endfor %}"
        "{% for n in [{'c': [{'c': []}]}] recursive %}<{{ loop(n.c) }}>{% endfor %}{% macro m(a, b=2) %}{{ a + b }}{{ varargs }}{% endmacro %}"
        "{{ m(1) }}{{ m(1, 3, [4]) }}{{ 'a,b'.split(',') | join('-') | upper }}{{ '%05d|%s' % (7, 'x') }}{{ '{:>4}'.format(1) }}"
        "{{ messages | map(attribute='role') | list | unique | join(' ') }}{{ (messages | selectattr('role', 'equalto', 'user') | list)[0].content }}"
        "{{ 'a\nb' | indent(4) }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ [1] + [2] }}{{ [0] * 3 }}{{ 1000000 | default(5000000) }}{{ 3.14159 | round(2) }}"
    )
    source = {"whole": WHOLE, "everything": everything}.get(name) or TEMPLATES[name]
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    mine = ChatTemplate(source, tokens={"bos_token": "<s>", "eos_token": "</s>"})
    plain.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    talk: list[dict[str, Any]] = TALK * 40 if name in ("chatml", "everything") else TALK
    wanted = plain.from_string(source).render(
        messages=talk, tools=None, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    assert mine.render(talk, add_generation_prompt=True) == wanted


def test_long_histories_are_within_the_bounds() -> None:
    talk = TALK[:2] * 2000 + TALK[2:]
    for name in ("chatml", "llama3", "qwen3", "mistral", "gemma"):
        assert ChatTemplate(TEMPLATES[name], tokens={"bos_token": "", "eos_token": ""}).render(
            talk, add_generation_prompt=True
        )
    long = [{"role": "user", "content": "word " * 2_000_000}]
    assert len(ChatTemplate(TEMPLATES["chatml"], tokens={}).render(long, add_generation_prompt=True)) > 10_000_000


def test_training_rows_and_the_check_of_data_name_the_template_and_the_limit(
    tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base_folder, folder)
    (folder / "chat_template.jinja").write_text(HOSTILE["nested loops"])
    with pytest.raises(InvalidInput) as caught:
        Renderer(folder).examples(TALK[:2])
    assert caught.value.code == "template_limit"
    monkeypatch.setenv("TUNERY_HOME", str(tmp_path / "home"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": TALK[:2]}) + "\n")
    monkeypatch.setattr(sandbox_limits, "MAX_STEPS", 50_000)
    with pytest.raises(SystemExit):
        main(["data", "check", str(rows), "--base", str(folder)])
    output = "".join(capsys.readouterr())
    assert "50000 steps" in output
    assert "template" in output
