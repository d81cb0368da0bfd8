"""Evaluations in the registry: claims, what is stored once, and what belongs to versions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.registry.artifacts import make_adapter, make_base
from tunery.registry import NewVersion
from tunery.registry.errors import Conflict, NotFound
from tunery.registry.evals.claims import RunClaim
from tunery.registry.evals.records import EvalRun, Measurement
from tunery.registry.evals.store import EvalStore, NewRun
from tunery.registry.home import Home
from tunery.registry.registry import Registry

BASE = "b" * 64


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(home: Home, clock: Clock) -> Iterator[EvalStore]:
    with Registry.open(home, clock=clock) as registry:
        yield registry.evals


def add(store: EvalStore, tmp_path: Path, *, owner: str | None = None, base: str = BASE) -> EvalRun:
    made = store.create(tenant="acme", name="e", source={}, criteria=[])
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    more: dict[str, Any] = {"request": {}, "plan": {}, "data_name": rows.name, "row_count": 1}
    return store.add_run(NewRun(eval=made.id, name="r", base_digest=base, path=rows, owner=owner, **more))


def claim_of(run: EvalRun | None) -> RunClaim:
    assert run is not None
    return RunClaim(run.id, run.fence)


def test_a_run_is_claimed_once_by_a_server_with_its_base(store: EvalStore, clock: Clock, tmp_path: Path) -> None:
    run = add(store, tmp_path)
    assert store.claim("other", base_digest="c" * 64) is None
    assert not store.has_work("c" * 64)
    assert store.has_work(BASE)
    claimed = store.claim("a", base_digest=BASE)
    assert claimed is not None
    assert (claimed.id, claimed.state, claimed.owner, claimed.fence) == (run.id, "in_progress", "a", 1)
    assert store.claim("b", base_digest=BASE) is None
    store.renew(claim_of(claimed))
    clock.now += 31
    assert store.has_work(BASE)
    again = store.claim("b", base_digest=BASE)
    assert (again and again.fence) == 2
    for late in (
        lambda: store.renew(claim_of(claimed)),
        lambda: store.release(claim_of(claimed)),
        lambda: store.add_item(claim_of(claimed), position=0, state="pass", data={}),
        lambda: store.finish(claim_of(claimed), summary={}, measured=[]),
        lambda: store.fail(claim_of(claimed), error="e", code="c"),
    ):
        with pytest.raises(Conflict, match="no longer") as error:
            late()
        assert error.value.code == "claim_lost"
    assert store.counts(run.id) == {}


def test_a_row_is_stored_once(store: EvalStore, clock: Clock, tmp_path: Path) -> None:
    run = add(store, tmp_path, owner="a")
    store.add_item(claim_of(run), position=0, state="pass", data={"by": "a"})
    clock.now += 31
    again = claim_of(store.claim("b", base_digest=BASE))
    store.add_item(again, position=0, state="fail", data={"by": "b"})
    store.add_item(again, position=1, state="error", data={})
    items, more = store.items(run.id)
    assert [(item.position, item.state) for item in items] == [(0, "pass"), (1, "error")]
    assert not more
    assert store.counts(run.id) == {"pass": 1, "error": 1}
    assert [item.position for item in store.items(run.id, limit=1, ascending=False)[0]] == [1]


def test_a_released_run_waits_and_a_canceled_one_has_ended(store: EvalStore, tmp_path: Path) -> None:
    run = add(store, tmp_path, owner="a")
    store.release(claim_of(run))
    assert store.run(run.id).state == "queued"
    claimed = claim_of(store.claim("b", base_digest=BASE))
    assert store.cancel(run.id).state == "canceled"
    with pytest.raises(Conflict):
        store.add_item(claimed, position=0, state="pass", data={})
    with pytest.raises(Conflict) as error:
        store.cancel(run.id)
    assert error.value.code == "run_ended"


def test_a_run_that_kills_its_servers_fails(store: EvalStore, clock: Clock, tmp_path: Path) -> None:
    run = add(store, tmp_path)
    for _ in range(4):
        assert store.claim("a", base_digest=BASE) is not None
        clock.now += 31
    storing = claim_of(store.claim("a", base_digest=BASE))
    store.add_item(storing, position=0, state="pass", data={})
    for _ in range(5):
        clock.now += 31
        last = store.claim("a", base_digest=BASE)
    assert last is None
    failed = store.run(run.id)
    assert (failed.state, failed.code) == ("failed", "worker_lost")
    assert not store.has_work(BASE)


def test_rows_are_kept_with_their_run(home: Home, tmp_path: Path) -> None:
    with Registry.open(home) as registry:
        run = add(registry.evals, tmp_path)
        registry.collect(older_than=0)
        assert registry.evals.data_path(run).read_text() == "{}\n"
        registry.evals.delete(run.eval)
        with pytest.raises(NotFound):
            registry.evals.run(run.id)
        registry.collect(older_than=0)
        assert not registry.evals.data_path(run).exists()


def test_a_run_that_is_not_there_is_named(store: EvalStore) -> None:
    with pytest.raises(NotFound, match="there is no run nope; see tunery eval list"):
        store.run("nope")
    with pytest.raises(NotFound, match="there is no run nope of this evaluation"):
        store.run("nope", eval_id="eval_1")


def test_a_file_that_was_deleted_meanwhile_makes_no_run(store: EvalStore, tmp_path: Path) -> None:
    made = store.create(tenant="acme", name="e", source={}, criteria=[])
    more: dict[str, Any] = {"request": {}, "plan": {}, "data_name": "a", "row_count": 1, "base_digest": BASE}
    with pytest.raises(Conflict) as error:
        store.add_run(NewRun(eval=made.id, name="r", file="file-none", **more))
    assert error.value.code == "file_not_found"


def test_what_was_measured_belongs_to_the_version(registry: Registry, tmp_path: Path) -> None:
    base = registry.add_base(make_base(tmp_path / "base"))
    new = NewVersion(
        adapter="acme/a",
        folder=make_adapter(tmp_path / "a"),
        base=base,
        method="lora",
        manifest={},
        metrics={},
        actor="t",
    )
    version = registry.publish(new)
    run = add(registry.evals, tmp_path, owner="a", base=base.digest)
    kept = Measurement(
        adapter="acme/a", number=1, run=run.id, digest=version.digest, name="n", data_name="d", data_sha256="s",
        against=None, results={"model": {}},
    )  # fmt: skip
    gone = Measurement(**{name: getattr(kept, name) for name in kept.__struct_fields__} | {"number": 2})
    done = registry.evals.finish(claim_of(run), summary={"rows": 1}, measured=[kept, gone])
    assert (done.state, done.summary) == ("completed", {"rows": 1})
    kept = msgspec.structs.replace(kept, at=done.finished_at or 0.0)
    assert registry.evals.measurements(version.digest) == [kept]
    registry.evals.delete(run.eval)
    assert registry.evals.measurements(version.digest) == [kept]
    registry.remove("acme/a@1", actor="t")
    assert registry.evals.measurements(version.digest) == []


class RunMachine(RuleBasedStateMachine):
    """Servers that claim, store, die and come back: each row is stored once, by whoever had the claim then."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.registry = Registry.open(Home(Path(self.folder.name) / "home"), clock=self.clock)
        self.store = self.registry.evals
        self.run = add(self.store, Path(self.folder.name))
        self.claims: list[RunClaim] = []
        self.stored: dict[int, int] = {}

    @rule()
    def claim(self) -> None:
        run = self.store.claim("a", base_digest=BASE)
        if run is not None:
            assert run.fence == len(self.claims) + 1
            self.claims.append(claim_of(run))

    @rule(seconds=st.sampled_from([1.0, 29.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), position=st.integers(0, 3))
    def store_row(self, data: st.DataObject, position: int) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        before = self.store.run(self.run.id)
        try:
            self.store.add_item(claim, position=position, state="pass", data={"fence": claim.fence})
        except Conflict:
            assert claim.fence != before.fence or before.state != "in_progress"
            return
        assert (claim.fence, before.state) == (before.fence, "in_progress")
        self.stored.setdefault(position, claim.fence)

    @precondition(lambda self: self.claims)
    @rule()
    def release(self) -> None:
        before = self.store.run(self.run.id).state
        try:
            self.store.release(self.claims[-1])
        except Conflict:
            assert before != "in_progress"

    @rule()
    def cancel(self) -> None:
        before = self.store.run(self.run.id)
        try:
            assert self.store.cancel(self.run.id).state == "canceled"
        except Conflict:
            assert before.ended

    @invariant()
    def rows_are_those_of_the_first_who_stored_them(self) -> None:
        items, _ = self.store.items(self.run.id)
        assert {item.position: item.data["fence"] for item in items} == self.stored

    def teardown(self) -> None:
        self.registry.close()
        self.folder.cleanup()


TestRunMachine = RunMachine.TestCase
TestRunMachine.settings = settings(max_examples=10, stateful_step_count=15, deadline=None)
