"""A Jinja sandbox with bounds on time and memory, for chat templates that come with a base.

Every loop, call, filter and concatenation is charged to the budget of its rendering, and the size of what an operation
would make is measured before it is made. What is not charged takes time and memory in proportion to what has been
charged already.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from jinja2 import nodes
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from tunery.plugins.data.render.sandbox_limits import (
    CHARACTERS_PER_STEP,
    MAX_STEPS,
    MAX_TEXT,
    Budget,
    check_filter,
    check_method,
    check_operands,
    check_text,
    count_nodes,
    too_long,
)

__all__ = ["BoundedEnvironment"]

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
"""Filters that look at the values of a list or object one by one. Any other filter may write all of it out."""


class _Local(threading.local):
    budget: Budget | None = None


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox. Compile what `bounded` returns for a parsed template, and render inside `budget()`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=self.shown, **options)
        self._local = _Local()
        self.globals.pop("lipsum", None)

    def close_filters(self) -> None:
        """Wrap the filters that are registered now with their bounds."""
        for name, function in self.filters.items():
            self.filters[name] = self._filter(name, function)

    def bounded(self, template: nodes.Template) -> nodes.Template:
        """The template with its loops, concatenations and literals charged."""
        changed: nodes.Template = _Charging().visit(template)
        nodes.Node.set_environment(changed, self)
        return changed

    @contextmanager
    def budget(self) -> Iterator[None]:
        """Charge everything rendered in this thread inside the block to one budget."""
        before, self._local.budget = self._local.budget, Budget()
        try:
            yield
        finally:
            self._local.budget = before

    # -- operations of templates ---------------------------------------------------------------------------------------

    def counted(self, values: Any) -> Any:
        """Charge the values that a loop goes over, and return them."""
        listed = values if isinstance(values, list | tuple | dict | str) else list(islice(values, MAX_STEPS + 1))
        self._spend(len(listed))
        return listed

    def joined(self, values: Iterable[Any]) -> str:
        """Concatenate values, as `~` does."""
        return self.concat([str(self.shown(value)) for value in values])

    def built(self, value: Any) -> Any:
        """Charge a list or object that a template has built, and return it."""
        self._spend(count_nodes(value))
        return value

    def shown(self, value: Any) -> Any:
        """Charge a value that is about to be written out, and return it."""
        if isinstance(value, list | tuple | dict):
            self._spend(count_nodes(value))
        return value

    def concat(self, pieces: Iterable[str]) -> str:
        """Join the pieces of an output, or of a block of it."""
        kept, size = [], 0
        for piece in pieces:
            kept.append(piece)
            size += len(piece)
            if size > MAX_TEXT:
                raise too_long()
        self._spend(size // CHARACTERS_PER_STEP)
        return "".join(kept)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `+`, `*`, `**` or `%` where the result is not too large."""
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            check_text(len(left) + len(right))
            self._spend(1 + (len(left) + len(right)) // CHARACTERS_PER_STEP)
            return left + right
        check_operands(operator, left, right)
        if operator == "%" and isinstance(left, str):
            self.shown(right)
        return self._charged(super().call_binop(context, operator, left, right))

    def call(*args: Any, **kwargs: Any) -> Any:
        """Call a function, method or macro."""
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
            given = check_method(method.__name__, text, given, kwargs)
        return self._charged(ImmutableSandboxedEnvironment.call(self, context, function, *given, **kwargs))

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skipped = int(hasattr(function, "jinja_pass_arg"))

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._spend(1)
            hidden, given = list(args[:skipped]), list(args[skipped:])
            if given and name not in _ITERATING:
                self.shown(given[0])
            if given:
                given = [given[0], *check_filter(name, given[0], given[1:], kwargs)]
            return self._charged(function(*hidden, *given, **kwargs), deep=False)

        return bounded

    def _charged(self, value: Any, *, deep: bool = True) -> Any:
        """Charge a value that an operation has made, and return it."""
        if isinstance(value, str):
            if len(value) > MAX_TEXT:
                raise too_long()
            self._spend(1 + len(value) // CHARACTERS_PER_STEP)
        elif isinstance(value, list | tuple | dict):
            self._spend(count_nodes(value) if deep else len(value))
        return value

    def _spend(self, steps: int) -> None:
        if budget := self._local.budget:
            budget.spend(steps)


class _Charging(NodeTransformer):
    """Inserts calls of the environment's own functions where a template loops, concatenates or builds lists."""

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
