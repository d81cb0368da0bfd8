"""Owns the grammars that make an answer a call of a function, in the style that the base knows. Refuses to check schemas: the engine does.

The grammars are in llguidance's dialect of Lark. What is around the arguments is spelled as templates spell it, so that a model
meets what it was trained on; arguments are `%json` rules of their own, in which a schema's references still hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunery.gateway.api.request.tools import Function
from tunery.gateway.engine.messages import Constraint
from tunery.gateway.engine.structured_output.json_schema import prepare
from tunery.plugins.data.render.tools import CallStyle
from tunery.registry.errors import InvalidInput

__all__ = ["call_constraint"]

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to space JSON; a small model free to choose may write spaces for ever."""
_ANY_OBJECT = '{"type": "object"}'
MOST_CALLS = 8
"""Of one answer that must be calls; a small model may repeat one until something stops it."""
MAX_SCHEMAS = 256 * 1024
"""Bytes of all functions' schemas."""

_ARGUMENTS: dict[CallStyle, str] = {"hermes": "arguments", "llama": "parameters", "mistral": "arguments"}


def call_constraint(
    functions: Sequence[Function],
    style: CallStyle,
    *,
    several: bool,
    control: Mapping[str, int],
    instead: Constraint | None = None,
) -> Constraint:
    """The output is a call of one of `functions`, or `several`; or it is what `instead`, a constraint to JSON, says.

    `control` has the ids of those marks that are control tokens of the base, which a grammar has to name as such. Where the output
    need not be a call, a schema refuses nothing: what of it cannot be followed is left out.
    """
    functions = _readable(functions, lenient=instead is not None)
    calls = [f"call_{number}: {_call(function, _ARGUMENTS[style])}" for number, function in enumerate(functions)]
    one = " | ".join(f"call_{number}" for number in range(len(functions)))
    rules = [f"start: {'calls' if instead is None else 'calls | instead'}", *_frame(style, several, control)]
    if instead is not None:
        if style == "llama":
            raise InvalidInput(
                "this base's calls are bare JSON and could not be told from a JSON answer; leave out response_format or tools",
                code="unsupported_parameter",
                param="response_format",
            )
        rules.append(f"instead: %json {_answer(instead)}")
    return Constraint("grammar", "\n".join([*rules, f"call: {one}", *calls]))


def _readable(functions: Sequence[Function], *, lenient: bool) -> list[Function]:
    """The functions with schemas as the grammar library takes them; raises InvalidInput naming the one that cannot be called."""
    if sum(len(json.dumps(function.parameters)) for function in functions) > MAX_SCHEMAS:
        raise _invalid(f"the functions' parameters are larger than {MAX_SCHEMAS // 1024} KiB; offer fewer functions")
    readable = []
    for function in functions:
        try:
            parameters = prepare(function.parameters, lenient=lenient)
        except ValueError as error:
            if not lenient:
                raise _invalid(f"the parameters of {function.name!r} cannot be used: {error}") from error
            parameters = {"type": "object"}
        readable.append(Function(function.name, parameters))
    return readable


def _answer(instead: Constraint) -> str:
    """The schema of an answer that is no call."""
    if len(instead.text) > MAX_SCHEMAS:
        raise _invalid(f"the schema is larger than {MAX_SCHEMAS // 1024} KiB; shorten it", param="response_format")
    try:
        return _spaced(prepare(json.loads(instead.text or _ANY_OBJECT)))
    except ValueError as error:
        raise _invalid(f"this JSON schema cannot be used: {error}", param="response_format") from error


def _invalid(message: str, *, param: str = "tools") -> InvalidInput:
    return InvalidInput(message, code="invalid_constraint", param=param)


def _frame(style: CallStyle, several: bool, control: Mapping[str, int]) -> list[str]:
    """What is around the calls."""
    begin, end, listed = (_tag(text, control) for text in ("<tool_call>", "</tool_call>", "[TOOL_CALLS]"))
    if style == "hermes":
        return [
            f'calls: tagged ("\\n" tagged)~0..{MOST_CALLS - 1}' if several else "calls: tagged",
            f'tagged: {begin} "\\n" call "\\n" {end}',
        ]
    if style == "mistral":
        more = f' (", " call)~0..{MOST_CALLS - 1}' if several else ""
        return [f'calls: {listed} " "? "[" call{more} "]"']
    # Llama's templates allow one call a turn.
    return ["calls: call"]


def _call(function: Function, arguments: str) -> str:
    before = json.dumps(f'{{"name": "{function.name}", "{arguments}": ')
    return f'{before} %json {_spaced(function.parameters)} "}}"'


def _spaced(schema: dict[str, Any]) -> str:
    own = schema.get("x-guidance")
    own = own if isinstance(own, dict) else {}
    spacing = _SPACING if own.keys().isdisjoint({*_SPACING, "whitespace_pattern"}) else {}
    return json.dumps({**schema, "x-guidance": {**spacing, **own}})


def _tag(text: str, control: Mapping[str, int]) -> str:
    return f"<[{control[text]}]>" if text in control else json.dumps(text)
