"""Reads the structured output fields of a request, OpenAI's and vLLM's, which may not contradict each other.

The engine decides whether it can enforce a schema, regular expression or grammar.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from tunery.gateway.api.schemas.requests import SamplingFields
from tunery.gateway.engine.sampling_params import MAX_CONSTRAINT, Constraint
from tunery.registry.errors import InvalidInput

__all__ = ["read_constraint"]


def read_constraint(request: SamplingFields) -> Constraint | None:
    """What the output must be; None when it may be anything."""
    fields = {path: value for path, value in _constraining_fields(request).items() if value is not None}
    if not fields:
        return None
    constraints = {path: _READERS[path.rpartition(".")[2]](path, value) for path, value in fields.items()}
    if len(set(constraints.values())) > 1:
        message = f"{' and '.join(constraints)} differ in what the output must be; send one of them"
        raise InvalidInput(message, param=list(constraints)[1].partition(".")[0])
    return next(iter(constraints.values()))


def _constraining_fields(request: SamplingFields) -> dict[str, Any]:
    """Every field that may constrain the output, by its path; `response_format` of type text does not."""
    names = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex", "grammar")
    fields = {name: getattr(request, name) for name in names}
    if ((request.response_format or {}).get("type") or "text") != "text":
        fields["response_format"] = request.response_format
    structured = (request.structured_outputs or {}).items()
    nested = {key: value for key, value in structured if value is not None and value is not False}
    for key in nested:
        if key not in ("json", "regex", "choice", "grammar", "json_object"):
            raise _wrong(
                f"structured_outputs.{key}"[:100],
                "is not supported; use json, regex, choice, grammar or json_object",
            )
    return fields | {f"structured_outputs.{key}": value for key, value in nested.items()}


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
    # Measured before it is written out: what would be refused anyway can be a hundred times larger.
    _check_size(where, len(msgspec.json.encode(value)))
    return Constraint("json_schema", json.dumps(value, ensure_ascii=False))


def _choice(where: str, value: Any) -> Constraint:
    if not isinstance(value, list) or not value or not all(isinstance(choice, str) and choice for choice in value):
        raise _wrong(where, "must be a list of strings, one of which becomes the output")
    _check_size(where, sum(map(len, value)) + len(value) * len(' | ""'))
    return Constraint("grammar", "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in value))


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(where, "must be a non-empty string")
    _check_size(where, len(value))
    return value


def _check_size(where: str, size: int) -> None:
    if size > MAX_CONSTRAINT:
        raise InvalidInput(
            f"{where} is larger than {MAX_CONSTRAINT // 1024} KiB; shorten it",
            code="invalid_constraint",
            param=where.partition(".")[0],
        )


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
