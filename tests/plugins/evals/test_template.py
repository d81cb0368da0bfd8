"""Templates: plain substitution, whatever stands in them."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.plugins.evals.template import FieldPath, NotJson, Template, parse_path, parse_template
from tunery.registry.errors import InvalidInput

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
PLAIN = st.text().filter(lambda text: "{" not in text and "}" not in text)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.lists(st.tuples(PLAIN, NAMES, JSON), max_size=5), PLAIN)
def test_a_template_is_its_texts_with_the_values_between_them(parts: list[tuple[str, str, object]], rest: str) -> None:
    item = {name: value for _, name, value in parts}
    text = "".join(f"{plain}{{{{ item.{name} }}}}" for plain, name, _ in parts) + rest
    shown = [plain + (value if isinstance(value := item[name], str) else dump(value)) for plain, name, _ in parts]
    template = parse_template(text, param="input")
    assert template.fill({"item": item}) == "".join(shown) + rest
    assert [str(path) for path in template.paths] == [f"item.{name}" for _, name, _ in parts]


def dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@given(st.text(alphabet="{}. []item0sample_output_text\n'|()"))
def test_any_text_is_a_template_or_is_refused(text: str) -> None:
    try:
        template = parse_template(text, param="input")
    except InvalidInput as error:
        refusal: tuple[str, str | None] = (error.code, error.param)
    else:
        literal = "".join(part if isinstance(part, str) else "{{}}" for part in template.parts)
        assert re.sub(r"\{\{.*?\}\}", "{{}}", text, flags=re.DOTALL) == literal
        return
    assert refusal == ("invalid_template", "input")


@given(NAMES, st.text())
def test_what_is_filled_in_is_not_read_again(name: str, value: str) -> None:
    assert parse_template(f"<{{{{item.{name}}}}}>", param="input").fill({"item": {name: value}}) == f"<{value}>"
    nested = {"item": {name: "{{item.secret}}", "secret": "x"}}
    assert parse_template(f"{{{{item.{name}}}}}", param="input").fill(nested) == (
        "x" if name == "secret" else "{{item.secret}}"
    )


@pytest.mark.parametrize(
    "text",
    ["{{}}", "{{item}}", "{{ item.x | upper }}", "{{item.x()}}", "{{item['x']}}", "{{7*7}}", "{{other.x}}", "{{item.x",
     "{{sample.output_tools}}", "{{item.__class__.__init__['x']}}", "{{item[x]}}"],
)  # fmt: skip
def test_nothing_is_evaluated(text: str) -> None:
    with pytest.raises(InvalidInput) as error:
        parse_template(text, param="testing_criteria[0].input")
    assert error.value.param == "testing_criteria[0].input"


def test_paths_go_into_lists_and_objects() -> None:
    path = parse_path("item.parts[1].name", param="x")
    assert path == FieldPath("item", ("parts", 1, "name"))
    assert path.look_up({"item": {"parts": [0, {"name": "b"}]}}) == "b"
    bad: list[object] = [{"parts": [0]}, {"parts": {}}, {"parts": [0, 1]}, {"part": []}]
    for item in bad:
        with pytest.raises(InvalidInput, match=r"\{\{item.parts\[1\].name\}\}: there is no item.parts"):
            path.look_up({"item": item})


def test_an_answer_that_is_not_json_has_no_fields() -> None:
    template = Template((parse_path("sample.output_json.city", param="x"),))
    assert template.fill({"sample": {"output_text": "", "output_json": {"city": "Paris"}}}) == "Paris"
    with pytest.raises(NotJson, match="not valid JSON"):
        template.fill({"sample": {"output_text": "Paris"}})
    with pytest.raises(NotJson, match=r"has no sample\.output_json\.city"):
        template.fill({"sample": {"output_text": "[]", "output_json": []}})
