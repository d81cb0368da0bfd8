"""Aliases: moved by compare-and-set, every move remembered, rolled back step by step."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.registry.artifacts import make_adapter, make_base
from tests.registry.conftest import Publish
from tunery.registry import NewVersion
from tunery.registry.errors import Conflict, InvalidInput, NotFound
from tunery.registry.home import Home
from tunery.registry.registry import Registry


def test_a_move_that_looked_at_an_old_state_is_refused(registry: Registry, publish: Publish) -> None:
    for seed in (1, 2, 3):
        publish(seed=seed)
    registry.move_alias("acme/support", "production", 1, actor="a", expected=None)
    registry.move_alias("acme/support", "production", 2, actor="b", expected=1)
    with pytest.raises(Conflict, match="points to 2, not to 1"):
        registry.move_alias("acme/support", "production", 3, actor="c", expected=1)
    with pytest.raises(Conflict, match="not to nothing"):
        registry.move_alias("acme/support", "production", 3, actor="c", expected=None)
    assert registry.aliases("acme/support") == {"production": 2}


def test_history_says_who_moved_what_when_and_why(registry: Registry, publish: Publish) -> None:
    publish(seed=1, alias="production")
    publish(seed=2)
    registry.move_alias("acme/support", "production", 2, actor="ada", reason="better on refunds")
    registry.drop_alias("acme/support", "production", actor="bob")
    moves = [(m.before, m.after, m.actor, m.reason) for m in registry.history("acme/support", "production")]
    assert moves == [(None, 1, "test", "published"), (1, 2, "ada", "better on refunds"), (2, None, "bob", "")]


def test_rolling_back_twice_goes_back_two_versions(registry: Registry, publish: Publish) -> None:
    for seed in (1, 2, 3):
        publish(seed=seed, alias="production")
    assert registry.rollback("acme/support", actor="ops").after == 2
    assert registry.rollback("acme/support", actor="ops").after == 1
    with pytest.raises(InvalidInput, match="no earlier version"):
        registry.rollback("acme/support", actor="ops")


def test_rollback_passes_over_removed_versions(registry: Registry, publish: Publish) -> None:
    for seed in (1, 2, 3):
        publish(seed=seed, alias="production")
    registry.remove("acme/support@2", actor="ops")
    assert registry.rollback("acme/support", actor="ops").after == 1


def test_no_reason_can_pass_for_a_rollback(registry: Registry, publish: Publish) -> None:
    for seed in (1, 2):
        publish(seed=seed, alias="production")
    registry.move_alias("acme/support", "production", 1, actor="a", reason="rollback of a bad release")
    assert registry.rollback("acme/support", actor="ops").after == 2
    assert [move.kind for move in registry.history("acme/support")] == ["publish", "publish", "move", "rollback"]


def test_rollback_never_goes_forth_again_even_past_removed_versions(registry: Registry, publish: Publish) -> None:
    for seed in (1, 2, 3, 4):
        publish(seed=seed, alias="production")
    registry.remove("acme/support@3", actor="ops")
    assert registry.rollback("acme/support", actor="ops").after == 2
    assert registry.rollback("acme/support", actor="ops").after == 1
    with pytest.raises(InvalidInput, match="no earlier version"):
        registry.rollback("acme/support", actor="ops")


def test_a_rollback_that_looked_at_an_old_state_is_refused(registry: Registry, publish: Publish) -> None:
    for seed in (1, 2, 3):
        publish(seed=seed, alias="production")
    with pytest.raises(Conflict, match="points to 3, not to 2"):
        registry.rollback("acme/support", actor="ops", expected=2)
    assert registry.rollback("acme/support", actor="ops", expected=3, reason="slow").reason == "slow"


def test_an_alias_needs_a_version_that_exists(registry: Registry, publish: Publish) -> None:
    publish()
    with pytest.raises(NotFound, match="no version 7; it has: 1"):
        registry.move_alias("acme/support", "production", 7, actor="a")
    with pytest.raises(NotFound, match="no alias"):
        registry.drop_alias("acme/support", "nope", actor="a")
    assert registry.history("acme/support") == []


class AgainstAModel(RuleBasedStateMachine):
    """Random publishing, moving and removing agrees with three dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = tempfile.TemporaryDirectory()
        root = Path(self._scratch.name)
        self.registry = Registry.open(Home(root / "home"))
        self.base = self.registry.add_base(make_base(root / "base"))
        self.folder = make_adapter(root / "adapter")
        self.last = 0
        self.alive: set[int] = set()
        self.pointing: dict[str, int] = {}
        self.trail: dict[str, list[int]] = {"production": [], "canary": []}
        self.moves = 0

    @rule(alias=st.sampled_from([None, "production", "canary"]))
    def publish(self, alias: str | None) -> None:
        version = self.registry.publish(
            NewVersion(
                adapter="a/b",
                folder=self.folder,
                base=self.base,
                method="lora",
                manifest={},
                metrics={},
                actor="t",
                alias=alias,
            )
        )
        self.last += 1
        assert version.number == self.last
        self.alive.add(self.last)
        if alias:
            self._moved(alias, self.last)

    def _moved(self, alias: str, number: int) -> None:
        self.pointing[alias] = number
        self.trail[alias].append(number)
        self.moves += 1

    @precondition(lambda self: self.last)
    @rule(alias=st.sampled_from(["production", "canary"]), number=st.integers(1, 6))
    def move(self, alias: str, number: int) -> None:
        if number in self.alive:
            self.registry.move_alias("a/b", alias, number, actor="t", expected=self.pointing.get(alias))
            self._moved(alias, number)
        else:
            with pytest.raises(NotFound):
                self.registry.move_alias("a/b", alias, number, actor="t")

    @precondition(lambda self: self.pointing)
    @rule(alias=st.sampled_from(["production", "canary"]))
    def drop(self, alias: str) -> None:
        if alias not in self.pointing:
            with pytest.raises(NotFound):
                self.registry.drop_alias("a/b", alias, actor="t")
            return
        self.registry.drop_alias("a/b", alias, actor="t")
        del self.pointing[alias]
        self.moves += 1

    @precondition(lambda self: self.last)
    @rule(alias=st.sampled_from(["production", "canary"]))
    def roll_back(self, alias: str) -> None:
        trail, now = self.trail[alias], self.pointing.get(alias)
        left = next((n for n in range(len(trail), 0, -1) if trail[n - 1] != now and trail[n - 1] in self.alive), 0)
        if not left:
            with pytest.raises(InvalidInput):
                self.registry.rollback("a/b", alias, actor="t")
            return
        assert self.registry.rollback("a/b", alias, actor="t").after == trail[left - 1]
        self.trail[alias] = trail[:left]
        self.pointing[alias] = trail[left - 1]
        self.moves += 1

    @precondition(lambda self: self.last)
    @rule(number=st.integers(1, 6))
    def remove(self, number: int) -> None:
        if number not in self.alive:
            expected: type[Exception] | None = NotFound
        else:
            expected = Conflict if number in self.pointing.values() else None
        if expected:
            with pytest.raises(expected):
                self.registry.remove(f"a/b@{number}", actor="t")
        else:
            self.registry.remove(f"a/b@{number}", actor="t")
            self.alive.discard(number)

    @rule()
    def collect(self) -> None:
        self.registry.collect(older_than=-1)

    @invariant()
    def agrees(self) -> None:
        assert {version.number for version in self.registry.versions("a/b")} == self.alive
        assert self.registry.aliases("a/b") == self.pointing
        assert len(self.registry.history("a/b")) == self.moves
        assert self.registry.verify() == []

    def teardown(self) -> None:
        self.registry.close()
        self._scratch.cleanup()


TestAgainstAModel = pytest.mark.slow(AgainstAModel.TestCase)
TestAgainstAModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
