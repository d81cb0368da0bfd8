"""What is wrong with a row: the error that formats raise, and the helpers for keys, texts and lists that they share."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunery.registry.errors import InvalidInput, near

__all__ = ["InvalidRow", "RowErrors", "item_errors", "json_type", "misplaced_keys", "text_errors", "unknown_keys"]

RowErrors = list[tuple[str, str]]
"""(JSON path, what is wrong and how to fix it)."""

_MEANING = (
    "system", "tools", "functions", "function_call", "tool_calls", "weight", "role", "content", "history", "instruction", "input"
)  # fmt: skip
"""Columns that would change what is trained, had the row's format a place for them."""
_MISSPELLED, _COLUMNS = 0.85, 100
"""Similarity from which an unknown key is a misspelling of a known one, and the number of columns compared."""
_MAX_ITEMS = 2000
_MAX_ERRORS, _KEYS_SHOWN = 20, 5
"""Errors per list, and unknown keys per object, that are described."""


class InvalidRow(InvalidInput):
    """Everything that is wrong with one row.

    `errors` are (JSON path, what is wrong and how to fix it); `rule` is the check that reports them.
    """

    code = "invalid_row"

    def __init__(self, errors: RowErrors, *, rule: str = "schema") -> None:
        super().__init__("; ".join(f"{path}: {text}" for path, text in errors))
        self.errors = tuple(errors)
        self.rule = rule

    def problems(self, place: str) -> list[str]:
        """Each error as a line that begins with its place, such as `rows.jsonl:3`."""
        return [f"{place}: {path}: {text}" for path, text in self.errors]


def item_errors(path: str, items: Sequence[Any], errors_of: Callable[[str, Any], RowErrors]) -> RowErrors:
    """The first errors in the items of a list; a list that is too long is one error."""
    if len(items) > _MAX_ITEMS:
        return [(path, f"has {len(items)} items, and a row may have {_MAX_ITEMS}; split the row")]
    errors: RowErrors = []
    for index, item in enumerate(items):
        errors += errors_of(f"{path}[{index}]", item)
        if len(errors) >= _MAX_ERRORS:
            return [*errors[:_MAX_ERRORS], (path, "may have more problems after these; fix them and check again")]
    return errors


def text_errors(row: Mapping[str, Any], *names: str) -> RowErrors:
    """What is wrong where `names` must be texts that are not empty."""
    errors: RowErrors = []
    for name in names:
        value = row.get(name)
        if not isinstance(value, str):
            state = f"must be a text, not {json_type(value)}" if name in row else "is missing; write the text"
            errors.append((f"$.{name}", state))
        elif not value.strip():
            errors.append((f"$.{name}", "is empty; write the text or drop the row"))
    return errors


def unknown_keys(path: str, row: Mapping[str, Any], keys: tuple[str, ...]) -> RowErrors:
    """Keys with a value that the format does not have, with suggestions."""
    extra = [key for key, value in row.items() if key not in keys and value is not None]
    return _key_errors(path, extra, keys)


def misplaced_keys(row: Mapping[str, Any], keys: tuple[str, ...]) -> RowErrors:
    """Columns that the format does not have but that cannot be ignored: misspelled ones, and ones with a meaning
    elsewhere.

    Any other column is ignored; the check `extra_column` names it.
    """
    extra = [key for key, value in row.items() if key not in keys and value is not None]
    near_ones = (key for key in extra[:_COLUMNS] if difflib.get_close_matches(key[:60], keys, n=1, cutoff=_MISSPELLED))
    extra = list(dict.fromkeys([*near_ones, *(key for key in extra if key in _MEANING)]))
    return _key_errors("$", extra, keys)


def json_type(value: Any) -> str:
    """The type of a JSON value, in words."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
    }
    if isinstance(value, list) and not value:
        return "an empty list"
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _key_errors(path: str, extra: list[str], keys: tuple[str, ...]) -> RowErrors:
    shown = [
        (f"{path}.{key[:60]}", f"is not known here; {near(key[:60], keys)} Or drop it") for key in extra[:_KEYS_SHOWN]
    ]
    if len(extra) > _KEYS_SHOWN:
        shown.append((path, f"has {len(extra) - _KEYS_SHOWN} more keys that are not known here; drop them"))
    return shown
