"""Builds the grammars that force an answer to be a tool call, in the style that the base knows.

Grammars are in llguidance's dialect of Lark. What surrounds the arguments is spelled as chat templates spell it, so
that a model meets what it was trained on; arguments are `%json` rules of their own, in which a schema's references
still resolve.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunery.gateway.api.request.tools import Function
from tunery.gateway.engine.sampling_params import Constraint
from tunery.gateway.engine.structured_output.json_schema import prepare
from tunery.plugins.data.render.tools import CallStyle
from tunery.registry.errors import InvalidInput

__all__ = ["HERMES", "HERMES_END", "LLAMA", "MISTRAL", "TOOL_CALL_MARKS", "tool_call_constraint"]

HERMES, HERMES_END, MISTRAL, LLAMA = "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"
"""What stands before a call in each style, and after one in Hermes's."""
TOOL_CALL_MARKS = (HERMES, HERMES_END, MISTRAL, LLAMA)
"""Shown in the text even where they are control tokens, so that calls can be parsed."""

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to space JSON; a small model that is free to choose may write spaces forever."""
_ANY_OBJECT = '{"type": "object"}'
MAX_CALLS = 8
"""Calls in one answer that must be calls; a small model may repeat one until something stops it."""
MAX_SCHEMA_BYTES = 256 * 1024
"""Bytes of all functions' schemas together."""

_ARGUMENTS: dict[CallStyle, str] = {"hermes": "arguments", "llama": "parameters", "mistral": "arguments"}


def tool_call_constraint(
    functions: Sequence[Function],
    style: CallStyle,
    *,
    several: bool,
    control: Mapping[str, int],
    instead: Constraint | None = None,
) -> Constraint:
    """A constraint to a call of one of `functions`, to `several` calls, or to JSON as `instead` (another constraint)
    describes.

    `control` has the ids of those marks that are control tokens of the base, which a grammar must refer to by id. With
    `instead`, an argument schema is never refused: what cannot be enforced of it is left out.
    """
    functions = _prepared(functions, lenient=instead is not None)
    calls = [f"call_{number}: {_call(function, _ARGUMENTS[style])}" for number, function in enumerate(functions)]
    any_call = " | ".join(f"call_{number}" for number in range(len(functions)))
    rules = [f"start: {'calls' if instead is None else 'calls | instead'}", *_frame(style, several, control)]
    if instead is not None:
        if style == "llama":
            raise InvalidInput(
                "this base writes tool calls as bare JSON, which cannot be told from a JSON answer; "
                "leave out response_format or tools",
                code="unsupported_parameter",
                param="response_format",
            )
        rules.append(f"instead: %json {_answer_schema(instead)}")
    return Constraint("grammar", "\n".join([*rules, f"call: {any_call}", *calls]))


def _prepared(functions: Sequence[Function], *, lenient: bool) -> list[Function]:
    """The functions with schemas that the grammar library accepts; raise InvalidInput for one that cannot be called."""
    if sum(len(json.dumps(function.parameters)) for function in functions) > MAX_SCHEMA_BYTES:
        raise _invalid(
            f"the functions' parameters are larger than {MAX_SCHEMA_BYTES // 1024} KiB; offer fewer functions"
        )
    prepared = []
    for function in functions:
        try:
            parameters = prepare(function.parameters, lenient=lenient)
        except ValueError as error:
            if not lenient:
                raise _invalid(f"the parameters of {function.name!r} cannot be used: {error}") from error
            parameters = {"type": "object"}
        prepared.append(Function(function.name, parameters))
    return prepared


def _answer_schema(instead: Constraint) -> str:
    """The schema of an answer that is not a call."""
    if len(instead.text) > MAX_SCHEMA_BYTES:
        raise _invalid(f"the schema is larger than {MAX_SCHEMA_BYTES // 1024} KiB; shorten it", param="response_format")
    try:
        return _with_spacing(prepare(json.loads(instead.text or _ANY_OBJECT)))
    except ValueError as error:
        raise _invalid(f"this JSON schema cannot be used: {error}", param="response_format") from error


def _invalid(message: str, *, param: str = "tools") -> InvalidInput:
    return InvalidInput(message, code="invalid_constraint", param=param)


def _frame(style: CallStyle, several: bool, control: Mapping[str, int]) -> list[str]:
    """The rules for what surrounds the calls."""
    begin, end, listed = (_mark(text, control) for text in (HERMES, HERMES_END, MISTRAL))
    if style == "hermes":
        return [
            f'calls: tagged ("\\n" tagged)~0..{MAX_CALLS - 1}' if several else "calls: tagged",
            f'tagged: {begin} "\\n" call "\\n" {end}',
        ]
    if style == "mistral":
        more = f' (", " call)~0..{MAX_CALLS - 1}' if several else ""
        return [f'calls: {listed} " "? "[" call{more} "]"']
    # Llama's templates allow one call in each turn.
    return ["calls: call"]


def _call(function: Function, arguments: str) -> str:
    before = json.dumps(f'{{"name": "{function.name}", "{arguments}": ')
    return f'{before} %json {_with_spacing(function.parameters)} "}}"'


def _with_spacing(schema: dict[str, Any]) -> str:
    """The schema with one way to space JSON, unless it chooses its own."""
    own = schema.get("x-guidance")
    own = own if isinstance(own, dict) else {}
    spacing = _SPACING if own.keys().isdisjoint({*_SPACING, "whitespace_pattern"}) else {}
    return json.dumps({**schema, "x-guidance": {**spacing, **own}})


def _mark(text: str, control: Mapping[str, int]) -> str:
    return f"<[{control[text]}]>" if text in control else json.dumps(text)
