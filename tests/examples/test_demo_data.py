"""The demo's data: every ticket well-formed, varied and labelled from the closed sets; docstrings made the same each time."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest

from tunery.plugins.data import CHAT
from tunery.plugins.data.rows import read_rows

DEMO = Path(__file__).parents[2] / "examples" / "demo"
TICKETS = [json.loads(line)["messages"] for line in (DEMO / "tickets.jsonl").read_text().splitlines()]
SETS = {
    "team": {"billing", "technical", "account", "shipping", "sales", "privacy"},
    "priority": {"low", "normal", "high", "urgent"},
    "product": {
        "invoices", "subscriptions", "payments", "api", "mobile app", "dashboard", "reports", "login", "orders",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", DEMO / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_docs"] = module
    spec.loader.exec_module(module)
    return module


def test_there_are_three_hundred_tickets_in_the_fixed_format() -> None:
    assert len(read_rows(DEMO / "tickets.jsonl", formats=[CHAT])) == 300
    for ask, answer in TICKETS:
        assert (ask["role"], answer["role"]) == ("user", "assistant")
        routing = json.loads(answer["content"])
        assert list(routing) == ["team", "priority", "product", "summary"]
        for name, allowed in SETS.items():
            assert routing[name] in allowed
        assert 1 <= len(routing["summary"].split()) <= 6
        assert routing["summary"] == routing["summary"].lower()


def test_no_two_tickets_are_alike() -> None:
    words = [frozenset(ask["content"].lower().split()) for ask, _ in TICKETS]
    assert len(set(words)) == 300
    assert max(len(a & b) / len(a | b) for a, b in combinations(words, 2)) < 0.7


def test_every_label_is_there_often_enough_to_be_learned() -> None:
    for name, allowed in SETS.items():
        values = [json.loads(answer["content"])[name] for _, answer in TICKETS]
        assert min(values.count(value) for value in allowed) >= 15, name


@pytest.mark.parametrize("task", ["docstring", "signature"])
def test_docstring_rows_are_made_the_same_each_time(make_docs: ModuleType, task: str) -> None:
    rows = make_docs.docstring_rows(400, task=task)
    assert rows == make_docs.docstring_rows(400, task=task)
    assert rows != make_docs.docstring_rows(400, seed=1, task=task)
    assert len({json.dumps(row) for row in rows}) == len(rows) == 400
    assert all(len(row["messages"][1]["content"]) <= 200 for row in rows)
