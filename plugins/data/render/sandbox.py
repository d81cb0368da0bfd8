"""A Jinja sandbox with bounds on time and memory, for chat templates that come with a base.

Every loop, call, filter and concatenation is charged to the budget of its rendering, and what one operation would make is measured
before it is made. What is left out of the charge takes time and memory in proportion to what has been charged already.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from jinja2 import nodes
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

__all__ = ["MAX_SECONDS", "MAX_STEPS", "MAX_TEXT", "BoundedEnvironment", "TemplateLimit"]

MAX_STEPS = 1_000_000
"""Turns of loops, calls and operations of one rendering; so many characters made count as one more."""
CHARACTERS_A_STEP = 200
MAX_TEXT = 24_000_000
"""Characters of any text."""
MAX_NODES = 100_000
"""Values in a list or object that a template makes, whatever it is nested in counted anew."""
MAX_SECONDS = 10.0
"""Processor time of one rendering."""
_MAX_NUMBER = 100_000
"""The largest width, count or precision that a filter or method takes; and bits of a whole number."""
_DIGITS = re.compile(r"\d+")

_ITERATING = frozenset(
    [
        "attr",
        "batch",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "groupby",
        "items",
        "last",
        "length",
        "list",
        "map",
        "max",
        "min",
        "random",
        "reject",
        "rejectattr",
        "reverse",
        "select",
        "selectattr",
        "slice",
        "sort",
        "sum",
        "unique",
    ]
)
"""Filters that look at the values of a list or object one by one; the others may write all of it out."""


_WIDE = frozenset({"batch", "center", "indent", "round", "slice", "tojson", "truncate", "wordwrap"})
"""Filters that take a width, a count or a precision."""


class TemplateLimit(Exception):
    """A rendering went beyond a bound, which the message names."""


class _Budget:
    """What one rendering has left."""

    def __init__(self) -> None:
        self._steps, self._checked = 0, 0
        self._end = time.thread_time() + MAX_SECONDS

    def spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise TemplateLimit(f"{MAX_STEPS} steps of loops, calls and texts")
        if self._steps - self._checked >= 1000:
            self._checked = self._steps
            if time.thread_time() > self._end:
                raise TemplateLimit(f"{MAX_SECONDS:g} seconds")


class _Local(threading.local):
    budget: _Budget | None = None


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox; render inside `budget()`, and compile what `bounded` makes of a parsed template."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=self.shown, **options)
        self._local = _Local()
        self.globals.pop("lipsum", None)

    def close_filters(self) -> None:
        """Bound the filters that there are now."""
        for name, function in self.filters.items():
            self.filters[name] = self._filter(name, function)

    def bounded(self, template: nodes.Template) -> nodes.Template:
        """The template with its loops, concatenations and literals charged."""
        changed: nodes.Template = _Charging().visit(template)
        nodes.Node.set_environment(changed, self)
        return changed

    @contextmanager
    def budget(self) -> Iterator[None]:
        """Charge what is rendered in this thread meanwhile to one budget."""
        before, self._local.budget = self._local.budget, _Budget()
        try:
            yield
        finally:
            self._local.budget = before

    # -- what templates do ------------------------------------------------------------------------------------------------

    def counted(self, values: Any) -> Any:
        """What a loop goes over."""
        listed = values if isinstance(values, list | tuple | dict | str) else list(islice(values, MAX_STEPS + 1))
        self._spend(len(listed))
        return listed

    def joined(self, values: Iterable[Any]) -> str:
        """The values one after the other, as `~` writes them."""
        return self.concat([str(self.shown(value)) for value in values])

    def built(self, value: Any) -> Any:
        """A list or object that a template has made."""
        self._spend(_nodes(value))
        return value

    def shown(self, value: Any) -> Any:
        """A value that is about to be written out."""
        if isinstance(value, list | tuple | dict):
            self._spend(_nodes(value))
        return value

    def concat(self, pieces: Iterable[str]) -> str:
        """The pieces of an output, or of a block of it."""
        found, size = [], 0
        for piece in pieces:
            found.append(piece)
            size += len(piece)
            if size > MAX_TEXT:
                raise _too_long()
        self._spend(size // CHARACTERS_A_STEP)
        return "".join(found)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%` on operands whose result is not too large."""
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            _check_text(len(left) + len(right))
            self._spend(1 + (len(left) + len(right)) // CHARACTERS_A_STEP)
            return left + right
        _check_operands(operator, left, right)
        if operator == "%" and isinstance(left, str):
            self.shown(right)
        return self._made(super().call_binop(context, operator, left, right))

    def call(*args: Any, **kwargs: Any) -> Any:
        """A call of a function, method or macro."""
        self, context, function, *given = args
        if getattr(function, "__self__", None) is self:
            return function(*given)
        self._spend(1)
        if isinstance(function, LoopContext) and given:
            given[0] = self.counted(given[0])
        if isinstance(function, Macro) and (function.catch_varargs or function.catch_kwargs):
            self.built([*given, *kwargs.values()])
        method = getattr(function, "__wrapped__", function)
        if isinstance(text := getattr(method, "__self__", None), str):
            given = _checked_method(method.__name__, text, given, kwargs)
        return self._made(ImmutableSandboxedEnvironment.call(self, context, function, *given, **kwargs))

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skipped = int(hasattr(function, "jinja_pass_arg"))

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._spend(1)
            hidden, given = list(args[:skipped]), list(args[skipped:])
            if given and name not in _ITERATING:
                self.shown(given[0])
            if given:
                given = [given[0], *_checked_filter(name, given[0], given[1:], kwargs)]
            return self._made(function(*hidden, *given, **kwargs), deep=False)

        return bounded

    def _made(self, value: Any, *, deep: bool = True) -> Any:
        """A value that an operation has made."""
        if isinstance(value, str):
            if len(value) > MAX_TEXT:
                raise _too_long()
            self._spend(1 + len(value) // CHARACTERS_A_STEP)
        elif isinstance(value, list | tuple | dict):
            self._spend(_nodes(value) if deep else len(value))
        return value

    def _spend(self, steps: int) -> None:
        if budget := self._local.budget:
            budget.spend(steps)


class _Charging(NodeTransformer):
    """Puts the environment's own functions where a template loops, joins texts or makes lists."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2 finds it by this name
        self.generic_visit(node)
        node.iter = _call("counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("joined", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("built", node)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if node.ctx != "load" else _call("built", node)


def _call(name: str, value: nodes.Node) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=value.lineno)
    return nodes.Call(function, [value], [], None, None, lineno=value.lineno)


def _nodes(value: Any) -> int:
    """How many values there are in `value`, each as often as it would be written."""
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
            raise _too_long()
    return count + characters // CHARACTERS_A_STEP


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "%" and isinstance(left, str):
        _check_format(left, right if isinstance(right, tuple) else (right,))
    elif operator == "*":
        text, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(text, int) and isinstance(times, int):
            _check_number(text.bit_length() + times.bit_length())
        elif isinstance(text, str | list | tuple) and isinstance(times, int):
            _check_text(len(text) * times * (1 if isinstance(text, str) else MAX_TEXT // MAX_NODES))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_number(left.bit_length() * abs(right))


def _checked_method(name: str, text: str, given: list[Any], named: Mapping[str, Any]) -> list[Any]:
    """The arguments of a text's method, if what it makes is not too long."""
    values = [*given, *named.values()]
    numbers = [value for value in values if isinstance(value, int)]
    if name == "translate":
        raise TemplateLimit("what is allowed: translate is not")
    if name in ("ljust", "rjust", "center", "zfill"):
        _check_text(max(numbers, default=0))
    elif name == "expandtabs":
        _check_text(text.count("\t") * max(numbers, default=8))
    elif name in ("format", "format_map"):
        _check_format(text, values)
    elif name == "replace" and len(values) > 1:
        _check_text(text.count(str(values[0])) * len(str(values[1])))
    elif name == "join" and given and not isinstance(given[0], Undefined):
        parts = list(islice(given[0], MAX_NODES + 1))
        _check_joined(text, parts)
        return [parts, *given[1:]]
    return given


def _checked_filter(name: str, value: Any, given: list[Any], named: Mapping[str, Any]) -> list[Any]:
    """The arguments of a filter, if what it makes is not too large."""
    values = [*given, *named.values()]
    largest = max((abs(number) for number in values if isinstance(number, int)), default=0)
    longest = max((len(text) for text in values if isinstance(text, str)), default=0)
    if name in _WIDE:
        _check_number(largest if name != "round" else 100 * largest)
    if name == "format" and isinstance(value, str):
        _check_format(value, values)
    elif name == "replace" and len(values) > 1:
        _check_text(str(value).count(str(values[0])) * len(str(values[1])))
    elif name == "wordwrap":
        _check_text(len(str(value)) * (1 + longest))
    elif name in ("indent", "tojson"):
        lines = value.count("\n") + 1 if isinstance(value, str) else _nodes(value)
        _check_text(max(largest, longest, 4) * lines)
    elif name == "join" and isinstance(value, list | tuple):
        _check_joined(str(values[0]) if values else "", value)
    return given


def _check_joined(between: str, parts: list[Any] | tuple[Any, ...]) -> None:
    if len(parts) > MAX_NODES:
        raise TemplateLimit(f"{MAX_NODES} values in one list or object")
    _check_text(len(between) * len(parts) + sum(len(part) for part in parts if isinstance(part, str)))


def _check_format(text: str, values: Iterable[Any]) -> None:
    """Refuse widths, written out or given, that would make a format's result too long."""
    widths = [int(digits[0]) if len(digits[0]) < 9 else MAX_TEXT + 1 for digits in _DIGITS.finditer(text)]
    given = [value for value in values if isinstance(value, int)]
    if "*" in text or "{" in text:
        widths += [abs(value) * max(1, text.count("*") + text.count("{")) for value in given]
    _check_text(sum(widths))
    fields = text.count("%") + text.count("{")
    _check_text(fields * max((len(value) for value in values if isinstance(value, str)), default=0))


def _check_text(size: int) -> None:
    if size > MAX_TEXT:
        raise _too_long()


def _check_number(number: int) -> None:
    if number > _MAX_NUMBER:
        raise TemplateLimit(f"{_MAX_NUMBER} as a width, a count or the bits of a number")


def _too_long() -> TemplateLimit:
    return TemplateLimit(f"{MAX_TEXT} characters")
