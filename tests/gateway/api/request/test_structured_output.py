"""Every way to ask for structured output, on both endpoints."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.api.conftest import Served
from tunery.gateway.engine.sampling_params import Constraint
from tunery.registry.errors import InvalidInput

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


def asked(path: str) -> dict[str, object]:
    """What is asked on either endpoint."""
    return {"messages": MESSAGES} if "chat" in path else {"prompt": "x"}


PATHS = ["/v1/chat/completions", "/v1/completions"]
SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "string"}}, "required": ["z", "a"]}
TEXT = json.dumps(SCHEMA)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, Constraint("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            Constraint("json_schema", TEXT),
        ),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "text"}, "regex": "a+"}, Constraint("regex", "a+")),
        ({"guided_json": SCHEMA}, Constraint("json_schema", TEXT)),
        ({"guided_json": TEXT}, Constraint("json_schema", TEXT)),
        ({"guided_regex": "a|b"}, Constraint("regex", "a|b")),
        ({"guided_grammar": 'start: "a"'}, Constraint("grammar", 'start: "a"')),
        ({"guided_choice": ['a"b', "ü"]}, Constraint("grammar", 'start: "a\\"b" | "ü"')),
        ({"regex": "a|b"}, Constraint("regex", "a|b")),
        ({"grammar": 'start: "a"'}, Constraint("grammar", 'start: "a"')),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint("json_schema", TEXT)),
        ({"structured_outputs": {"regex": "a", "grammar": None}}, Constraint("regex", "a")),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Constraint("grammar", 'start: "a"')),
        ({"structured_outputs": {"choice": ["a"]}}, Constraint("grammar", 'start: "a"')),
        ({"structured_outputs": {"json_object": True}}, Constraint("json_object")),
        ({"structured_outputs": {"json_object": False}}, None),
        ({}, None),
    ],
)
async def test_every_way_to_request_a_structure(
    served: Served, path: str, extra: dict[str, Any], expected: Constraint | None
) -> None:
    response = await served.post(path, {"model": "tiny", **asked(path), "n": 2, **extra})
    assert response.status_code == 200, response.text
    assert [request.sampling.constraint for request in served.engine.requests] == [expected] * 2


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("extra", "param", "message"),
    [
        ({"regex": "a", "guided_json": SCHEMA}, "regex", "guided_json and regex"),
        (
            {"response_format": {"type": "json_object"}, "grammar": "x"},
            "response_format",
            "grammar and response_format",
        ),
        ({"structured_outputs": {"regex": "a", "json": SCHEMA}}, "structured_outputs", "structured_outputs.json"),
        ({"response_format": {"type": "xml"}}, "response_format", "'xml'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "response_format.json_schema must be"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}},
            "response_format",
            "response_format.json_schema.schema must be an object",
        ),
        ({"response_format": {"type": ["text"]}}, "response_format", "it is text, json_object or json_schema"),
        ({"guided_json": "{"}, "guided_json", "is not JSON"),
        ({"guided_json": "[]"}, "guided_json", "must be an object"),
        ({"guided_regex": ""}, "guided_regex", "non-empty string"),
        ({"guided_choice": []}, "guided_choice", "list of strings"),
        ({"guided_choice": [""]}, "guided_choice", "list of strings"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs", "structural_tag is not supported"),
        ({"structured_outputs": {"json": 3}}, "structured_outputs", "structured_outputs.json must be an object"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs", "must be true or false"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    served: Served, path: str, extra: dict[str, Any], param: str, message: str
) -> None:
    response = await served.post(path, {"model": "tiny", **asked(path), **extra})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert message in error["message"]
    assert served.engine.requests == []


async def test_the_clients_own_models_are_schemas(served: Served) -> None:
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    served.says('{"name": "Ada", "age": 36}')
    answer = await served.client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
    constraint = served.engine.requests[0].sampling.constraint
    assert constraint is not None
    assert json.loads(constraint.text)["properties"].keys() == {"name", "age"}


async def test_what_the_engine_cannot_follow_is_400(served: Served) -> None:
    served.engine.failure = InvalidInput("this regular expression cannot be used", code="invalid_constraint")
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body={"regex": "("})
    assert caught.value.code == "invalid_constraint"


async def test_the_same_form_under_two_names_is_one(served: Served) -> None:
    """guidance's client sends its grammar under vLLM's old name and its new one."""
    grammar, schema = 'start: "yes" | "no"', {"type": "object", "properties": {}}
    for extra in (
        {"guided_grammar": grammar, "structured_outputs": {"grammar": grammar}},
        {"grammar": grammar, "guided_grammar": grammar, "guided_choice": ["yes", "no"]},
        {"guided_json": schema, "structured_outputs": {"json": '{"type": "object", "properties": {}}'}},
        {"guided_json": schema, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
    ):
        body = {"model": "tiny", "messages": MESSAGES, **extra}
        response = await served.post("/v1/chat/completions", body)
        assert response.status_code == 200, response.text
    body = {
        "model": "tiny",
        "messages": MESSAGES,
        "guided_grammar": grammar,
        "structured_outputs": {"grammar": 'start: "no"'},
    }
    error = (await served.post("/v1/chat/completions", body)).json()["error"]
    assert "guided_grammar and structured_outputs.grammar differ" in error["message"]
