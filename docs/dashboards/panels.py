"""What a dashboard consists of: rows of panels, each with the expressions that it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

__all__ = ["Dashboard", "Panel", "Query", "Variable", "one", "stat"]


class Query(msgspec.Struct, frozen=True):
    """An expression, and what each of its series is called."""

    legend: str
    expression: str


class Panel(msgspec.Struct, frozen=True):
    """A panel; `limits` are where it turns yellow and red, upwards, or downwards where it is bad to be `below` them."""

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    limits: tuple[float, ...] = ()
    below: bool = False
    type: Literal["timeseries", "stat", "table"] = "timeseries"
    width: int = 8


class Variable(msgspec.Struct, frozen=True):
    """A choice at the top of a dashboard."""

    name: str
    query: str


class Dashboard(msgspec.Struct, frozen=True):
    """A dashboard: its panels by the title of their row."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: Mapping[str, tuple[Panel, ...]]


def one(legend: str, expression: str) -> tuple[Query, ...]:
    """A single query."""
    return (Query(legend, expression),)


def stat(
    title: str, unit: str, description: str, expression: str, limits: tuple[float, ...] = (), *, below: bool = False
) -> Panel:
    """A panel that shows one number."""
    return Panel(title, unit, description, one(title, expression), limits, below, "stat")
