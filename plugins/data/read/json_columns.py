"""Turn the cells of a table into the values of a row: JSON that stands in a text is read where a row needs more than a text."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["with_json_columns", "without_nulls"]

_MESSAGES = (
    "messages", "prompt", "chosen", "rejected", "preferred_output", "non_preferred_output", "preferred_completion",
    "non_preferred_completion",
)  # fmt: skip
_LISTS = ("tools", "conversations", "history")
_KEPT_EMPTY = ("arguments", "parameters", "properties")
"""What an object without fields means something in: a function that takes nothing."""


def with_json_columns(row: dict[str, Any]) -> dict[str, Any]:
    """The row with messages, functions and turns that are written as JSON inside a text read; other texts stay texts."""
    for name, text in row.items():
        if isinstance(text, str) and text[:1] in ("[", "{") and (value := _structure(name, text)) is not None:
            row[name] = value
    return row


def without_nulls(value: Any) -> Any:
    """The value without fields that are null. A table has every field of every row in all of them, so there null means absent."""
    if isinstance(value, dict):
        kept = {name: without_nulls(item) for name, item in value.items() if item is not None}
        return {name: item for name, item in kept.items() if item != {} or name in _KEPT_EMPTY}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _structure(name: str, text: str) -> Any:
    """What a column's text holds as JSON, if that is what the column is for; None for any other text in brackets, which is text."""
    if name not in (*_MESSAGES, *_LISTS, "input"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if name == "input":
        return value if isinstance(value, dict) and "messages" in value else None
    if not isinstance(value, list) or (name in _MESSAGES and not (value and all(map(_is_message, value)))):
        return None
    return value


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value
