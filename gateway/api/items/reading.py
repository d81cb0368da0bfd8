"""Reads the items of a request: messages, function calls and their outputs, in the shape in which they are stored.

Errors name an item as the client wrote it: `input[3]`. Reasoning items are left out, since no template shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from tunery.gateway.api.request.messages import FUNCTION_NAME
from tunery.plugins.data.render.conversation import read_arguments
from tunery.registry.errors import InvalidInput, near_or

__all__ = ["Item", "read_items", "referenced"]

Item = dict[str, Any]

ROLES = ("user", "system", "developer", "assistant")
TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Kinds of content parts that are text, and where it is."""
FIELDS = {
    "message": ("type", "role", "content"),
    "function_call": ("type", "call_id", "name", "arguments"),
    "function_call_output": ("type", "call_id", "output"),
}
SILENT = (
    "id", "status", "phase", "parsed_arguments", "created_by", "caller", "namespace", "async", "async_", "cache_control",
)  # fmt: skip
"""Fields that an item may have and no prompt shows."""


def read_items(
    raw: str | list[Any],
    *,
    earlier: Sequence[Item] = (),
    found: Mapping[str, Item] | None = None,
    check_wanted: Callable[[], None] = lambda: None,
) -> list[Item]:
    """The items of `input`; raise InvalidInput naming the item that is wrong.

    They follow the `earlier` items, whose calls they may answer; `found` are the items that references name.
    `check_wanted` is called now and then, and may raise.
    """
    if isinstance(raw, str):
        raw = [{"role": "user", "content": raw}]
    called = {item["call_id"] for item in earlier if item["type"] == "function_call"}
    waiting = called - {item["call_id"] for item in earlier if item["type"] == "function_call_output"}
    items = []
    for at, one in enumerate(raw):
        check_wanted()
        item = _item(f"input[{at}]", one, found or {})
        if item is not None:
            _follow(f"input[{at}]", item, called, waiting)
            items.append(item)
    return items


def referenced(raw: str | list[Any]) -> set[str]:
    """The ids of all items that `input` refers to."""
    if isinstance(raw, str):
        return set()
    return {item["id"] for item in raw if _kind(item) == "item_reference" and isinstance(item.get("id"), str)}


def _kind(raw: Any) -> Any:
    """An item's type, which may be left out of a message and of a reference."""
    if not isinstance(raw, dict):
        return None
    return raw.get("type") or ("message" if "role" in raw else "item_reference" if raw.get("id") else None)


def _item(where: str, raw: Any, found: Mapping[str, Item]) -> Item | None:
    kind = _kind(raw)
    if kind == "reasoning":
        return None
    if kind == "item_reference":
        return _referred(where, raw, found)
    fields = {name: value for name, value in raw.items() if value is not None} if isinstance(raw, dict) else {}
    if not isinstance(kind, str) or kind not in FIELDS:
        raise InvalidInput(
            f"{where} is of type {str(kind)[:50]!r}, which is not supported; send {', '.join(FIELDS)}",
            code="unsupported_item",
            param="input",
        )
    for name, value in fields.items():
        if name not in FIELDS[kind] and name not in SILENT and value:
            hint = near_or(name[:80], FIELDS[kind], "leave it out")
            raise _unsupported(f"{where}.{name[:80]} is not supported; {hint}")
    item = _READERS[kind](where, fields)
    return {**({"id": fields["id"]} if _is_id(fields.get("id")) else {}), **item}


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 100


def _referred(where: str, raw: Item, found: Mapping[str, Item]) -> Item:
    name = raw.get("id")
    item = found.get(name) if isinstance(name, str) else None
    if item is None:
        raise InvalidInput(
            f"{where}: Item with id '{str(name)[:80]}' not found. Items are kept only of responses with store: true; "
            "send the item itself",
            code="item_not_found",
            param="input",
        )
    return item


def _follow(where: str, item: Item, called: set[str], waiting: set[str]) -> None:
    """Check a call or an output against the calls before it, and note it."""
    call_id = item.get("call_id")
    if item["type"] == "function_call":
        if call_id in waiting:
            raise _wrong(f"{where}.call_id is that of another call, which has no output yet; give each call its own")
        called.add(item["call_id"])
        waiting.add(item["call_id"])
    elif item["type"] == "function_call_output":
        if call_id not in called:
            raise _wrong(f"{where}: No tool call found for function call output with call_id {str(call_id)[:80]}.")
        waiting.discard(item["call_id"])


def _message(where: str, fields: Item) -> Item:
    role = fields.get("role")
    if role not in ROLES:
        raise _wrong(f"{where}.role is {str(role)[:50]!r}; it is one of {', '.join(ROLES)}")
    text = "".join(_texts(f"{where}.content", fields.get("content")))
    part = {"type": "output_text", "text": text, "annotations": []} if role == "assistant" else {
        "type": "input_text", "text": text
    }  # fmt: skip
    return {"type": "message", "role": role, "status": "completed", "content": [part]}


def _function_call(where: str, fields: Item) -> Item:
    name, arguments = fields.get("name"), fields.get("arguments")
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise _wrong(f"{where}.name is {str(name)[:80]!r}; it is up to 64 letters, digits, '_' and '-'")
    try:
        read_arguments(arguments)
    except ValueError as error:
        raise _wrong(f"{where}.arguments must be a string with a JSON object: {error}") from error
    text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()
    call_id = _call_id(where, fields)
    return {"type": "function_call", "status": "completed", "call_id": call_id, "name": name, "arguments": text}


def _function_call_output(where: str, fields: Item) -> Item:
    text = "".join(_texts(f"{where}.output", fields.get("output")))
    call_id = _call_id(where, fields)
    return {"type": "function_call_output", "status": "completed", "call_id": call_id, "output": text}


def _call_id(where: str, fields: Item) -> str:
    call_id = fields.get("call_id")
    if not isinstance(call_id, str) or not call_id:
        raise _wrong(f"{where}.call_id is missing; a call and its output have the same one")
    return call_id


def _texts(where: str, content: Any) -> Iterator[str]:
    """The texts of a content, which is text or a list of parts."""
    if isinstance(content, str):
        yield content
        return
    if not isinstance(content, list):
        raise _wrong(f"{where} is missing; it is text or a list of text parts")
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(TEXT_PARTS[kind]) if isinstance(kind, str) and kind in TEXT_PARTS else None
        if not isinstance(text, str):
            raise _unsupported(f"{where}[{at}] is of type {str(kind)[:50]!r}; only text is supported")
        yield text


def _wrong(message: str) -> InvalidInput:
    return InvalidInput(message, param="input")


def _unsupported(message: str) -> InvalidInput:
    return InvalidInput(message, code="unsupported_parameter", param="input")


_READERS: dict[str, Callable[[str, Item], Item]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
}
