"""Reads the tool calling fields of a chat request: which functions there are, and which may or must be called."""

from __future__ import annotations

from typing import Any

import msgspec

from tunery.gateway.api.request.messages import FUNCTION_NAME
from tunery.gateway.api.schemas.requests import ChatRequest
from tunery.plugins.data.render.conversation import plain_tool
from tunery.registry.errors import InvalidInput, near

__all__ = ["Function", "ToolCalling", "read_tool_calling"]

MAX_FUNCTIONS = 128


class Function(msgspec.Struct, frozen=True):
    """A function that may be called: its name, and the JSON schema of its arguments, which describes an object."""

    name: str
    parameters: dict[str, Any]


class ToolCalling(msgspec.Struct, frozen=True):
    """What the answer may do with functions.

    The chat template shows the tools in `offered`. Any of `functions` may be called, and one must be if `required`;
    with none of them the answer is plain text. Without `parallel`, only the first call counts. `several` lets a
    `required` answer have several calls.
    """

    offered: tuple[dict[str, Any], ...] = ()
    functions: tuple[Function, ...] = ()
    required: bool = False
    parallel: bool = True
    several: bool = False


def read_tool_calling(request: ChatRequest, *, place: str = "tools[{}].function") -> ToolCalling:
    """Read `tools`, `tool_choice` and `parallel_tool_calls`; raise InvalidInput naming the field that is wrong.

    `place` is where the client wrote a function, for messages.
    """
    functions = _functions(request.tools or [], place)
    choice = request.tool_choice or "auto"
    if choice == "none" or (choice == "auto" and not functions):
        return ToolCalling()
    if not functions:
        raise InvalidInput("tool_choice needs tools to choose from", param="tool_choice")
    offered = tuple(plain_tool(tool) for tool in request.tools or ())
    parallel = request.parallel_tool_calls is not False
    if isinstance(choice, dict):
        return ToolCalling(offered, (_named(choice, functions),), required=True, parallel=False)
    if choice not in ("auto", "required"):
        raise InvalidInput(
            f"tool_choice is {choice[:50]!r}; it is none, auto, required, or an object that names a function",
            param="tool_choice",
        )
    several = request.parallel_tool_calls is True
    return ToolCalling(offered, functions, required=choice == "required", parallel=parallel, several=several)


def _functions(tools: list[Any], place: str) -> tuple[Function, ...]:
    if len(tools) > MAX_FUNCTIONS:
        raise InvalidInput(f"tools has {len(tools)} functions; the limit is {MAX_FUNCTIONS}", param="tools")
    functions = tuple(_function(place.format(index), _inner(index, tool)) for index, tool in enumerate(tools))
    seen: set[str] = set()
    for index, function in enumerate(functions):
        if function.name in seen:
            where = f"{place.format(index)}.name"
            raise _wrong(f"{where} is {function.name!r}, which another function already has; rename one")
        seen.add(function.name)
    return functions


def _inner(index: int, tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") != "function":
        raise _wrong(f'tools[{index}] must be {{"type": "function", "function": {{"name": …, "parameters": …}}}}')
    return function


def _function(where: str, function: dict[str, Any]) -> Function:
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise _wrong(f"{where}.name is {str(name)[:80]!r}; it is up to 64 letters, digits, '_' and '-'")
    if not isinstance(description, str | None):
        raise _wrong(f"{where}.description must be a string")
    return Function(name, _parameters(f"{where}.parameters", function.get("parameters")))


def _parameters(where: str, schema: Any) -> dict[str, Any]:
    """A function's parameters; a function without a schema takes none."""
    if schema is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise _wrong(f"{where} must be the JSON schema of an object")
    return {"type": "object", **schema}


def _named(choice: dict[str, Any], functions: tuple[Function, ...]) -> Function:
    named = choice.get("function")
    if choice.get("type") != "function" or not isinstance(named, dict) or not isinstance(named.get("name"), str):
        raise InvalidInput(
            'tool_choice must be {"type": "function", "function": {"name": …}} where it is an object',
            param="tool_choice",
        )
    for function in functions:
        if function.name == named["name"]:
            return function
    hint = near(named["name"][:64], (function.name for function in functions))
    raise InvalidInput(f"tool_choice names {named['name'][:64]!r}, which is not in tools: {hint}", param="tool_choice")


def _wrong(message: str) -> InvalidInput:
    return InvalidInput(message, param="tools")
