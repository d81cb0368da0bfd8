"""Turn the cells of a table into the values of a row: JSON in a text cell is parsed where the column needs more than
text."""

from __future__ import annotations

import json
from typing import Any

import msgspec

__all__ = ["with_json_columns", "without_nulls"]

_MESSAGES = (
    "messages", "prompt", "chosen", "rejected", "preferred_output", "non_preferred_output", "preferred_completion",
    "non_preferred_completion",
)  # fmt: skip
_LISTS = ("tools", "conversations", "history")
_KEPT_EMPTY = ("arguments", "parameters", "properties")
"""Fields in which an empty object is a value: a function without parameters, say."""


def with_json_columns(row: dict[str, Any]) -> dict[str, Any]:
    """The row with messages, tools and turns parsed where they are written as JSON text; other texts stay texts."""
    for name, text in row.items():
        if isinstance(text, str) and text[:1] in ("[", "{") and (value := _structure(name, text)) is not None:
            row[name] = value
    return row


def without_nulls(value: Any) -> Any:
    """The value without null fields. In a table every row has the fields of all rows, so null means absent there."""
    if isinstance(value, dict):
        kept = {name: without_nulls(item) for name, item in value.items() if item is not None}
        return {name: item for name, item in kept.items() if item != {} or name in _KEPT_EMPTY}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _structure(name: str, text: str) -> Any:
    """The JSON in a column's text, if the column is for JSON; None for any other text, brackets or not."""
    if name not in (*_MESSAGES, *_LISTS, "input"):
        return None
    try:
        value = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    if name == "input":
        return value if isinstance(value, dict) and "messages" in value else None
    if not isinstance(value, list) or (name in _MESSAGES and not (value and all(map(_is_message, value)))):
        return None
    return value


def _integer(digits: str) -> int | msgspec.Raw:
    """A number as it is written, where it would be too long to write again."""
    return int(digits) if len(digits) < 19 else msgspec.Raw(digits.encode())


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value
