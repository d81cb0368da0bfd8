"""Owns what a chat request says of functions: which there are, which may or must be called; refuses what cannot be meant."""

from __future__ import annotations

from typing import Any

import msgspec

from tunery.gateway.api.request.messages import FUNCTION_NAME
from tunery.gateway.api.schemas.requests import ChatRequest
from tunery.plugins.data.render.conversation import plain_tool
from tunery.registry.errors import InvalidInput, near

__all__ = ["Function", "Tooling", "read_tooling"]

MOST = 128


class Function(msgspec.Struct, frozen=True):
    """A function that may be called: its name, and the JSON schema of its arguments, which is one of an object."""

    name: str
    parameters: dict[str, Any]


class Tooling(msgspec.Struct, frozen=True):
    """What the answer may do with functions.

    `offered` is what the template shows. `functions` may be called, and one of them must be where `required`; more than one call
    counts only where `parallel`, and is written where a call is `required` only with `several`. Without any function the answer is
    just text.
    """

    offered: tuple[dict[str, Any], ...] = ()
    functions: tuple[Function, ...] = ()
    required: bool = False
    parallel: bool = True
    several: bool = False


def read_tooling(request: ChatRequest) -> Tooling:
    """Read `tools`, `tool_choice` and `parallel_tool_calls`; raises InvalidInput naming what is wrong with which."""
    functions = _functions(request.tools or [])
    choice = request.tool_choice or "auto"
    if choice == "none" or (choice == "auto" and not functions):
        return Tooling()
    if not functions:
        raise InvalidInput("tool_choice needs tools to choose from", param="tool_choice")
    offered = tuple(plain_tool(tool) for tool in request.tools or ())
    parallel = request.parallel_tool_calls is not False
    if isinstance(choice, dict):
        return Tooling(offered, (_named(choice, functions),), required=True, parallel=False)
    if choice not in ("auto", "required"):
        raise InvalidInput(
            f"tool_choice is {choice[:50]!r}; it is none, auto, required, or an object that names a function",
            param="tool_choice",
        )
    several = request.parallel_tool_calls is True
    return Tooling(offered, functions, required=choice == "required", parallel=parallel, several=several)


def _functions(tools: list[Any]) -> tuple[Function, ...]:
    if len(tools) > MOST:
        raise InvalidInput(f"tools has {len(tools)} functions and {MOST} is the most", param="tools")
    functions = tuple(_function(f"tools[{index}]", tool) for index, tool in enumerate(tools))
    seen: set[str] = set()
    for index, function in enumerate(functions):
        if function.name in seen:
            raise _wrong(f"tools[{index}].function.name is {function.name!r}, which another one is called already")
        seen.add(function.name)
    return functions


def _function(where: str, tool: Any) -> Function:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") != "function":
        raise _wrong(f'{where} must be {{"type": "function", "function": {{"name": …, "parameters": …}}}}')
    name, described = function.get("name"), function.get("description")
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise _wrong(f"{where}.function.name is {str(name)[:80]!r}; it is up to 64 letters, digits, '_' and '-'")
    if not isinstance(described, str | None):
        raise _wrong(f"{where}.function.description must be a text")
    return Function(name, _parameters(f"{where}.function.parameters", function.get("parameters")))


def _parameters(where: str, schema: Any) -> dict[str, Any]:
    """A function's parameters; without any, it takes none."""
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
    found = [function for function in functions if function.name == named["name"]]
    if not found:
        known = near(named["name"][:64], (function.name for function in functions))
        raise InvalidInput(
            f"tool_choice names {named['name'][:64]!r}, which tools does not have: {known}", param="tool_choice"
        )
    return found[0]


def _wrong(message: str) -> InvalidInput:
    return InvalidInput(message, param="tools")
