"""Owns the ways in which a request may say what its output must be, OpenAI's and vLLM's; refuses different ones at once.

Whether a schema, expression or grammar can be followed, the engine says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from tunery.gateway.api.schemas.requests import SamplingFields
from tunery.gateway.engine.messages import Constraint
from tunery.registry.errors import InvalidInput

__all__ = ["constraint_of"]


def constraint_of(request: SamplingFields) -> Constraint | None:
    """What the output must be; None when it may be anything."""
    given = {name: value for name, value in _given(request).items() if value is not None}
    if not given:
        return None
    asked = {where: _READERS[where.rpartition(".")[2]](where, value) for where, value in given.items()}
    if len(set(asked.values())) > 1:
        message = f"{' and '.join(asked)} differ in what the output must be; send one of them"
        raise InvalidInput(message, param=list(asked)[1].partition(".")[0])
    return next(iter(asked.values()))


def _given(request: SamplingFields) -> dict[str, Any]:
    """Every field that may constrain, by its path; `response_format` of type text constrains nothing."""
    names = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex", "grammar")
    given = {name: getattr(request, name) for name in names}
    if ((request.response_format or {}).get("type") or "text") != "text":
        given["response_format"] = request.response_format
    asked = (request.structured_outputs or {}).items()
    nested = {key: value for key, value in asked if value is not None and value is not False}
    for key in nested:
        if key not in ("json", "regex", "choice", "grammar", "json_object"):
            raise _wrong(
                f"structured_outputs.{key}"[:100],
                "is not supported; it has json, regex, choice, grammar or json_object",
            )
    return given | {f"structured_outputs.{key}": value for key, value in nested.items()}


def _response_format(where: str, value: Any) -> Constraint:
    kind = value["type"]
    if kind == "json_object":
        return Constraint("json_object")
    if kind != "json_schema":
        raise _wrong(f"{where}.type", f"is {str(kind)[:50]!r}; it is text, json_object or json_schema")
    named = value.get("json_schema")
    where = f"{where}.json_schema"
    return _schema(f"{where}.schema", named.get("schema")) if isinstance(named, dict) else _schema(where, named)


def _schema(where: str, value: Any) -> Constraint:
    """A JSON schema, as an object or as its text."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise _wrong(where, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _wrong(where, "must be an object, the JSON schema")
    return Constraint("json_schema", json.dumps(value, ensure_ascii=False))


def _choice(where: str, value: Any) -> Constraint:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise _wrong(where, "must be a list of texts, one of which is the output")
    return Constraint("grammar", "start: " + " | ".join(json.dumps(one, ensure_ascii=False) for one in value))


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(where, "must be a text that is not empty")
    return value


def _json_object(where: str, value: Any) -> Constraint:
    if value is not True:
        raise _wrong(where, "must be true or false")
    return Constraint("json_object")


def _wrong(where: str, what: str) -> InvalidInput:
    return InvalidInput(f"{where} {what}", param=where.partition(".")[0])


_READERS: dict[str, Callable[[str, Any], Constraint]] = {
    "response_format": _response_format,
    "json": _schema,
    "guided_json": _schema,
    "json_object": _json_object,
    **dict.fromkeys(("choice", "guided_choice"), _choice),
    **dict.fromkeys(("regex", "guided_regex"), lambda where, value: Constraint("regex", _text(where, value))),
    **dict.fromkeys(("grammar", "guided_grammar"), lambda where, value: Constraint("grammar", _text(where, value))),
}
