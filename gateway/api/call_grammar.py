"""Owns the grammars that make an answer a call of a function, in the style that the base knows. Refuses to check schemas: the engine does.

The grammars are in llguidance's dialect of Lark. What is around the arguments is spelled as templates spell it, so that a model
meets what it was trained on; arguments are `%json` rules of their own, in which a schema's references still hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunery.gateway.api.tools import Function
from tunery.gateway.engine.messages import Constraint
from tunery.plugins.data.tools import CallStyle
from tunery.registry.errors import InvalidInput

__all__ = ["call_constraint"]

_SPACING = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
"""One way to space JSON; a small model free to choose may write spaces for ever."""
_ANY_OBJECT = '{"type": "object"}'

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

    `control` has the ids of those marks that are control tokens of the base, which a grammar has to name as such.
    """
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
        rules.append(f"instead: %json {_spaced(json.loads(instead.text or _ANY_OBJECT))}")
    return Constraint("grammar", "\n".join([*rules, f"call: {one}", *calls]))


def _frame(style: CallStyle, several: bool, control: Mapping[str, int]) -> list[str]:
    """What is around the calls."""
    begin, end, listed = (_tag(text, control) for text in ("<tool_call>", "</tool_call>", "[TOOL_CALLS]"))
    if style == "hermes":
        return [
            'calls: tagged ("\\n" tagged)*' if several else "calls: tagged",
            f'tagged: {begin} "\\n" call "\\n" {end}',
        ]
    if style == "mistral":
        more = ' (", " call)*' if several else ""
        return [f'calls: {listed} " "? "[" call{more} "]"']
    # Llama's templates allow one call a turn.
    return ["calls: call"]


def _call(function: Function, arguments: str) -> str:
    before = json.dumps(f'{{"name": "{function.name}", "{arguments}": ')
    return f'{before} %json {_spaced(function.parameters)} "}}"'


def _spaced(schema: dict[str, Any]) -> str:
    return json.dumps(_SPACING | schema)


def _tag(text: str, control: Mapping[str, int]) -> str:
    return f"<[{control[text]}]>" if text in control else json.dumps(text)
