"""The demo's data: the shipped tickets keep their labelling rules, and the docstring rows are the same every time."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tunery.plugins.data import CHAT
from tunery.plugins.data.read.dataset import read_rows

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "examples" / "demo"
LABELS = {
    "team": {"billing", "technical", "account", "shipping", "sales", "privacy"},
    "priority": {"low", "normal", "high", "urgent"},
    "product": {
        "invoices",
        "subscriptions",
        "payments",
        "api",
        "mobile app",
        "dashboard",
        "reports",
        "login",
        "orders",
    },
}
HELD_OUT = 30


@pytest.fixture(scope="module")
def tickets() -> list[tuple[str, str]]:
    """Every ticket with its answer, both as text."""
    lines = (DEMO / "tickets.jsonl").read_text(encoding="utf-8").splitlines()
    return [_turns(json.loads(line)) for line in lines]


@pytest.fixture(scope="module")
def make_docs() -> ModuleType:
    """The script, with the library read once: reading it is what takes its time."""
    module = _load()
    pairs = tuple(module._pairs())
    vars(module)["_pairs"] = lambda: iter(pairs)
    return module


def test_three_hundred_tickets_in_chat_form(tickets: list[tuple[str, str]]) -> None:
    assert len(tickets) == len(read_rows(DEMO / "tickets.jsonl", formats=[CHAT])) == 300
    assert [text for text, _ in tickets if not 15 <= len(text.split()) <= 45 or text != text.strip()] == []


def test_answers_are_one_compact_line_with_known_labels(tickets: list[tuple[str, str]]) -> None:
    for _, answer in tickets:
        routing = json.loads(answer)
        assert list(routing) == [*LABELS, "summary"], answer
        assert answer == json.dumps(routing, separators=(",", ":"), ensure_ascii=False)
        assert all(routing[key] in allowed for key, allowed in LABELS.items()), answer


def test_summaries_are_short_and_in_the_tickets_own_words(tickets: list[tuple[str, str]]) -> None:
    for text, answer in tickets:
        summary = json.loads(answer)["summary"]
        assert 1 <= len(summary.split()) <= 6
        assert summary == summary.lower()
        assert set(_words(summary)) <= set(_words(text)), (summary, text)


def test_no_two_tickets_are_alike(tickets: list[tuple[str, str]]) -> None:
    assert len({text.lower() for text, _ in tickets}) == len(tickets)
    assert len({json.loads(answer)["summary"] for _, answer in tickets}) == len(tickets)
    shingles = [_shingles(text) for text, _ in tickets]
    assert max(len(a & b) / len(a | b) for a, b in itertools.combinations(shingles, 2)) < 0.3


def test_every_label_is_used_and_held_out_rows_cover_the_teams(tickets: list[tuple[str, str]]) -> None:
    routings = [json.loads(answer) for _, answer in tickets]
    for key, allowed in LABELS.items():
        counts = Counter(routing[key] for routing in routings)
        assert set(counts) == allowed
        assert min(counts.values()) >= 20, counts
    assert {routing["team"] for routing in routings[:HELD_OUT]} == LABELS["team"]


def test_tickets_hold_no_address_or_long_number(tickets: list[tuple[str, str]]) -> None:
    assert [text for text, _ in tickets if re.search(r"@|https?:|www\.|\d{6,}", text)] == []


def test_the_same_seed_gives_the_same_rows(make_docs: ModuleType) -> None:
    rows = make_docs.docstring_rows(50, seed=3)
    assert rows == make_docs.docstring_rows(80, seed=3)[:50]
    assert rows != make_docs.docstring_rows(50, seed=4)


def test_rows_are_public_distinct_and_short(make_docs: ModuleType) -> None:
    pairs = [_turns(row) for row in make_docs.docstring_rows(1000)]
    assert len(pairs) == 1000
    assert len({question for question, _ in pairs}) == len({answer for _, answer in pairs}) == 1000
    for question, answer in pairs:
        signature = re.fullmatch(r"Document `([\w.]+)\((.*)\)`\.", question)
        assert signature is not None, question
        assert not any(part.startswith("_") for part in signature[1].split(".")), question
        assert not signature[2].startswith("self"), question
        assert len(answer.split()) <= 60
        assert answer[-1] in ".!?"
        assert "\n" not in answer


def test_the_signature_task_is_the_same_pairs_reversed(make_docs: ModuleType) -> None:
    forward = [_turns(row) for row in make_docs.docstring_rows(100)]
    backward = [_turns(row) for row in make_docs.docstring_rows(100, task="signature")]
    assert backward == [
        (f"Which function: {text}", question.removeprefix("Document `").removesuffix("`."))
        for question, text in forward
    ]


def test_several_pairs_make_one_row(make_docs: ModuleType) -> None:
    single = make_docs.docstring_rows(7)
    rows = make_docs.together(single, 3)
    assert len(rows) == 2
    for number, row in enumerate(rows):
        parts = [_turns(one) for one in single[3 * number : 3 * number + 3]]
        assert _turns(row) == tuple("\n".join(texts) for texts in zip(*parts, strict=True))


def test_an_unknown_task_is_refused(make_docs: ModuleType) -> None:
    with pytest.raises(ValueError, match="choose one of docstring, signature"):
        make_docs.docstring_rows(1, task="poem")


def test_only_what_a_caller_can_write_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_docs = _load()
    (tmp_path / "shop.py").write_text(
        "class Till:\n"
        '    """Keeps the coins of one shop."""\n'
        "    def __init__(self, coins=0): ...\n"
        "    @property\n"
        "    def full(self):\n"
        '        """Whether nothing more fits into it."""\n'
        "    async def pay(self, amount: int, *, tip=None):\n"
        '        """Take an amount out of\n        the till.\n\n        More about it."""\n'
        "    def _count(self):\n"
        '        """Nobody outside is to call this one."""\n'
        "def listed():\n"
        '    """These are the things that it does:"""\n'
    )
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "_secret.py").write_text('def f():\n    """A private module\'s function, left out."""\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "shop.py").write_text('def f():\n    """A test\'s own function, left out."""\n')
    monkeypatch.setattr(make_docs.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert sorted(_turns(row) for row in make_docs.docstring_rows(10)) == [
        ("Document `shop.Till(coins=0)`.", "Keeps the coins of one shop."),
        ("Document `shop.Till.pay(amount: int, *, tip=None)`.", "Take an amount out of the till."),
    ]


def test_the_command_writes_the_rows(make_docs: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "new" / "rows.jsonl"
    options = ["--rows", "5", "--seed", "2", "--task", "signature", "--out", str(out)]
    subprocess.run([sys.executable, str(DEMO / "make_docs.py"), *options], check=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == make_docs.docstring_rows(5, seed=2, task="signature")


def _load() -> ModuleType:
    """The script, from its file."""
    spec = importlib.util.spec_from_file_location("demo_make_docs", DEMO / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _turns(row: dict[str, Any]) -> tuple[str, str]:
    """What the user and the assistant say, in a row that holds nothing else."""
    assert list(row) == ["messages"]
    user, assistant = row["messages"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    return user["content"], assistant["content"]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = _words(text)
    return set(zip(words, words[1:], words[2:], strict=False))
