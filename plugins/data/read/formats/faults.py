"""What is wrong with a row: a fault, the error that formats raise, and the helpers for keys, texts and lists that they
share."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from tunery.plugins.hookspecs import Severity
from tunery.registry.errors import InvalidInput, near, near_or

__all__ = [
    "Fault",
    "InvalidRow",
    "item_faults",
    "json_type",
    "misplaced_keys",
    "not_one_of",
    "not_text",
    "text_faults",
    "unknown_keys",
]

_MEANING = (
    "system", "tools", "functions", "function_call", "tool_calls", "weight", "role", "content", "history", "instruction", "input"
)  # fmt: skip
"""Columns that would change what is trained, had the row's format a place for them."""
_MISSPELLED, _COLUMNS = 0.85, 100
"""Similarity from which an unknown key is a misspelling of a known one, and the number of columns compared."""
_MAX_ITEMS = 2000
_MAX_FAULTS, _KEYS_SHOWN = 20, 5
"""Faults per list, and unknown keys per object, that are described."""


class Fault(msgspec.Struct, frozen=True):
    """Something wrong in one record: a JSON path, what is wrong there and how to fix it.

    `severity` overrides the severity that the check which reports it was registered with.
    """

    path: str
    message: str
    fix: str = ""
    severity: Severity | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.message}; {self.fix}" if self.fix else f"{self.path}: {self.message}"


class InvalidRow(InvalidInput):
    """Everything that is wrong with one row; `rule` is the check that reports it."""

    code = "invalid_row"

    def __init__(self, faults: list[Fault], *, rule: str = "schema") -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = tuple(faults)
        self.rule = rule

    def problems(self, place: str) -> list[str]:
        """Each fault as a line that begins with its place, such as `rows.jsonl:3`."""
        return [f"{place}: {fault}" for fault in self.faults]


def item_faults(path: str, items: Sequence[Any], faults_of: Callable[[str, Any], list[Fault]]) -> list[Fault]:
    """The first faults in the items of a list; a list that is too long is one fault."""
    if len(items) > _MAX_ITEMS:
        return [Fault(path, f"has {len(items)} items, and a row may have {_MAX_ITEMS}", "split the row")]
    faults: list[Fault] = []
    for index, item in enumerate(items):
        faults += faults_of(f"{path}[{index}]", item)
        if len(faults) >= _MAX_FAULTS:
            return [
                *faults[:_MAX_FAULTS],
                Fault(path, "may have more problems after these", "fix them and check again"),
            ]
    return faults


def text_faults(row: Mapping[str, Any], *names: str) -> list[Fault]:
    """What is wrong where `names` must be texts that are not empty."""
    faults: list[Fault] = []
    for name in names:
        value = row.get(name)
        if not isinstance(value, str):
            faults.append(not_text(f"$.{name}", value, is_given=name in row))
        elif not value.strip():
            faults.append(Fault(f"$.{name}", "is empty", "write the text or drop the row"))
    return faults


def not_text(path: str, value: Any, *, is_given: bool) -> Fault:
    """The fault of a field that must be a text, and is not, or is not given at all."""
    if is_given:
        return Fault(path, f"must be a text, not {json_type(value)}")
    return Fault(path, "is missing", "write the text")


def not_one_of(path: str, value: Any, known: Collection[str], *, is_given: bool) -> Fault:
    """The fault of a field that must be one of `known`, and is not, or is not given at all."""
    hint = near(value[:60], known) if isinstance(value, str) else "use one of " + ", ".join(known)
    shown = repr(value[:60]) if isinstance(value, str) else json_type(value)
    return Fault(path, f"is {shown}" if is_given else "is missing", hint)


def unknown_keys(path: str, row: Mapping[str, Any], keys: tuple[str, ...]) -> list[Fault]:
    """Keys with a value that the format does not have, with suggestions."""
    extra = [key for key, value in row.items() if key not in keys and value is not None]
    return _key_faults(path, extra, keys)


def misplaced_keys(row: Mapping[str, Any], keys: tuple[str, ...]) -> list[Fault]:
    """Columns that the format does not have but that cannot be ignored: misspelled ones, and ones with a meaning
    elsewhere.

    Any other column is ignored; the check `extra_column` names it.
    """
    extra = [key for key, value in row.items() if key not in keys and value is not None]
    near_ones = (key for key in extra[:_COLUMNS] if difflib.get_close_matches(key[:60], keys, n=1, cutoff=_MISSPELLED))
    extra = list(dict.fromkeys([*near_ones, *(key for key in extra if key in _MEANING)]))
    return _key_faults("$", extra, keys)


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


def _key_faults(path: str, extra: list[str], keys: tuple[str, ...]) -> list[Fault]:
    shown = [
        Fault(f"{path}.{key[:60]}", "is not known here", near_or(key[:60], keys, "drop it"))
        for key in extra[:_KEYS_SHOWN]
    ]
    if len(extra) > _KEYS_SHOWN:
        shown.append(Fault(path, f"has {len(extra) - _KEYS_SHOWN} more keys that are not known here", "drop them"))
    return shown
