"""The bounds on one rendering, and measures of what an operation of a template would make before it is made."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from jinja2.runtime import Undefined

__all__ = [
    "CHARACTERS_PER_STEP",
    "MAX_SECONDS",
    "MAX_STEPS",
    "MAX_TEXT",
    "Budget",
    "TemplateLimit",
    "check_filter",
    "check_method",
    "check_operands",
    "check_text",
    "count_nodes",
    "too_long",
]

MAX_STEPS = 1_000_000
"""Loop iterations, calls and operations of one rendering."""
CHARACTERS_PER_STEP = 200
"""Characters that count as one step when they are made."""
MAX_TEXT = 24_000_000
"""Characters of any text."""
MAX_NODES = 100_000
"""Values in a list or object that a template builds; nested values count each time they occur."""
MAX_SECONDS = 10.0
"""Seconds of processor time of one rendering."""
CHECK_STEPS = 1000
"""Steps between two looks at the time."""
_MAX_NUMBER = 100_000
"""The largest width, count or precision of a filter or method, and the bits of the largest integer."""
_DIGITS = re.compile(r"\d+")

_WIDE = frozenset({"batch", "center", "indent", "round", "slice", "tojson", "truncate", "wordwrap"})
"""Filters that take a width, a count or a precision."""


class TemplateLimit(Exception):
    """A rendering exceeded a bound, which the message names."""


class Budget:
    """The steps and the time that one rendering has left. Its time begins after CHECK_STEPS, which take none to speak of:
    asking for a thread's time costs as much as rendering a short chat."""

    def __init__(self) -> None:
        self._steps, self._checked = 0, 0
        self._end = math.inf

    def spend(self, steps: int) -> None:
        """Charge `steps`. Raises TemplateLimit where they, or the time, are used up."""
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise TemplateLimit(f"{MAX_STEPS} steps of loops, calls and texts")
        if self._steps - self._checked >= CHECK_STEPS:
            self._checked = self._steps
            now = time.thread_time()
            if now > self._end:
                raise TemplateLimit(f"{MAX_SECONDS:g} seconds")
            self._end = min(self._end, now + MAX_SECONDS)


def check_text(size: int) -> None:
    """Raise TemplateLimit for a text of more than MAX_TEXT characters."""
    if size > MAX_TEXT:
        raise too_long()


def count_nodes(value: Any) -> int:
    """The number of values in `value`, each as often as it would be written out. Raises TemplateLimit for too many."""
    count, characters, left = 0, 0, [value]
    while left:
        item = left.pop()
        count += 1
        if isinstance(item, str):
            characters += len(item)
        elif isinstance(item, Mapping):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            left += item
        if count > MAX_NODES:
            raise TemplateLimit(f"{MAX_NODES} values in one list or object")
        if characters > MAX_TEXT:
            raise too_long()
    return count + characters // CHARACTERS_PER_STEP


def check_operands(operator: str, left: Any, right: Any) -> None:
    """Raise TemplateLimit where `left operator right` would be too large."""
    if operator == "%" and isinstance(left, str):
        _check_format(left, right if isinstance(right, tuple) else (right,))
    elif operator == "*":
        text, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(text, int) and isinstance(times, int):
            _check_number(text.bit_length() + times.bit_length())
        elif isinstance(text, str | list | tuple) and isinstance(times, int):
            check_text(len(text) * times * (1 if isinstance(text, str) else MAX_TEXT // MAX_NODES))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_number(left.bit_length() * abs(right))


def check_method(name: str, text: str, given: list[Any], named: Mapping[str, Any]) -> list[Any]:
    """The arguments of a string method. Raises TemplateLimit where its result would be too long."""
    values = [*given, *named.values()]
    numbers = [value for value in values if isinstance(value, int)]
    if name == "translate":
        raise TemplateLimit("what is allowed: translate is not")
    if name in ("ljust", "rjust", "center", "zfill"):
        check_text(max(numbers, default=0))
    elif name == "expandtabs":
        check_text(text.count("\t") * max(numbers, default=8))
    elif name in ("format", "format_map"):
        _check_format(text, values)
    elif name == "replace" and len(values) > 1:
        check_text(text.count(str(values[0])) * len(str(values[1])))
    elif name == "join" and given and not isinstance(given[0], Undefined):
        parts = list(islice(given[0], MAX_NODES + 1))
        _check_joined(text, parts)
        return [parts, *given[1:]]
    return given


def check_filter(name: str, value: Any, given: list[Any], named: Mapping[str, Any]) -> list[Any]:
    """The arguments of a filter. Raises TemplateLimit where its result would be too large."""
    values = [*given, *named.values()]
    largest = max((abs(number) for number in values if isinstance(number, int)), default=0)
    longest = max((len(text) for text in values if isinstance(text, str)), default=0)
    if name in _WIDE:
        _check_number(largest if name != "round" else 100 * largest)
    if name == "format" and isinstance(value, str):
        _check_format(value, values)
    elif name == "replace" and len(values) > 1:
        check_text(str(value).count(str(values[0])) * len(str(values[1])))
    elif name == "wordwrap":
        check_text(len(str(value)) * (1 + longest))
    elif name in ("indent", "tojson"):
        lines = value.count("\n") + 1 if isinstance(value, str) else count_nodes(value)
        check_text(max(largest, longest, 4) * lines)
    elif name == "join" and isinstance(value, list | tuple):
        _check_joined(str(values[0]) if values else "", value)
    return given


def _check_joined(between: str, parts: list[Any] | tuple[Any, ...]) -> None:
    if len(parts) > MAX_NODES:
        raise TemplateLimit(f"{MAX_NODES} values in one list or object")
    check_text(len(between) * len(parts) + sum(len(part) for part in parts if isinstance(part, str)))


def _check_format(text: str, values: Iterable[Any]) -> None:
    """Raise TemplateLimit where the widths in a format, literal or as arguments, would make its result too long."""
    widths = [int(digits[0]) if len(digits[0]) < 9 else MAX_TEXT + 1 for digits in _DIGITS.finditer(text)]
    given = [value for value in values if isinstance(value, int)]
    if "*" in text or "{" in text:
        widths += [abs(value) * max(1, text.count("*") + text.count("{")) for value in given]
    check_text(sum(widths))
    fields = text.count("%") + text.count("{")
    check_text(fields * max((len(value) for value in values if isinstance(value, str)), default=0))


def _check_number(number: int) -> None:
    if number > _MAX_NUMBER:
        raise TemplateLimit(f"{_MAX_NUMBER} as a width, a count or the bits of a number")


def too_long() -> TemplateLimit:
    """The error for a text that is too long."""
    return TemplateLimit(f"{MAX_TEXT} characters")
