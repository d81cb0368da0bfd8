"""Batches in the registry: who may run which, that only the last claim counts, and that an end is whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tunery.registry.batches.batches import LEASE_SECONDS
from tunery.registry.batches.table import BatchClaim
from tunery.registry.errors import Conflict, NotFound
from tunery.registry.home import Home
from tunery.registry.records import Batch, BatchCounts
from tunery.registry.registry import Registry


@dataclass
class Clocked:
    """A registry whose time the test sets, and a file of requests."""

    registry: Registry
    folder: Path
    now: list[float]
    file: str = ""
    results: list[Path] = field(default_factory=list)

    def submit(self, tenant: str = "acme") -> Batch:
        self.now[0] += 1
        return self.registry.batches.submit(
            tenant=tenant, endpoint="/v1/embeddings", input_file=self.upload(tenant), details={}
        )

    def upload(self, tenant: str) -> str:
        path = self.folder / "requests"
        path.write_text("requests")
        return self.registry.data_files.add(path, tenant=tenant, purpose="batch", name="a.jsonl").id

    def claim(self) -> BatchClaim | None:
        batch = self.registry.batches.claim("gateway")
        return None if batch is None else BatchClaim(batch.id, batch.fence)

    def take(self, batch: Batch) -> BatchClaim:
        claim = self.claim()
        assert claim is not None
        assert claim.batch == batch.id
        return claim


@pytest.fixture
def clocked(home: Home, tmp_path: Path) -> Iterator[Clocked]:
    now = [4e9]
    with Registry.open(home, clock=lambda: now[0]) as registry:
        yield Clocked(registry, tmp_path, now)


def test_a_claim_is_the_only_one_until_its_lease_ends_and_then_no_longer_counts(clocked: Clocked) -> None:
    batches, batch = clocked.registry.batches, clocked.submit()
    first = clocked.take(batch)
    assert clocked.claim() is None
    clocked.now[0] += LEASE_SECONDS - 1
    batches.advance(first)
    clocked.now[0] += LEASE_SECONDS - 1
    assert clocked.claim() is None
    clocked.now[0] += 2
    second = clocked.take(batch)
    assert second.fence == first.fence + 1
    for lost in (
        lambda: batches.advance(first, state="finalizing"),
        lambda: batches.release(first),
        lambda: batches.finish(first, "completed", counts=BatchCounts()),
    ):
        with pytest.raises(Conflict) as refused:
            lost()
        assert refused.value.code == "claim_lost"
    assert batches.get(batch.id).state == "validating"
    batches.release(second)
    assert clocked.take(batch).fence == second.fence + 1


def test_tenants_take_turns(clocked: Clocked) -> None:
    many = [clocked.submit("acme") for _ in range(3)]
    one = clocked.submit("globex")
    order = [clocked.claim() for _ in range(4)]
    assert [claim.batch for claim in order if claim] == [many[0].id, one.id, many[1].id, many[2].id]


def test_an_end_makes_the_result_files_and_only_once(clocked: Clocked) -> None:
    registry, batch = clocked.registry, clocked.submit()
    claim = clocked.take(batch)
    (registry.home.batches / batch.id).mkdir(parents=True)
    registry.batches.advance(claim, state="in_progress", counts=BatchCounts(total=3), model="tiny")
    clocked.now[0] += 5
    registry.batches.advance(claim, state="finalizing")
    output = clocked.folder / "output"
    output.write_text("answers")
    counts = BatchCounts(total=3, completed=3, input_tokens=7)
    ended = registry.batches.finish(claim, "completed", counts=counts, output=output)
    assert (ended.state, ended.ended, ended.counts, ended.model) == ("completed", True, counts, "tiny")
    assert list(ended.times) == ["completed", "finalizing", "in_progress", "validating"]
    file = registry.data_files.get(str(ended.output_file), tenant="acme")
    assert (file.purpose, file.name) == ("batch_output", f"{batch.id}_output.jsonl")
    assert registry.data_files.path(file).read_text() == "answers"
    assert ended.error_file is None
    assert not (registry.home.batches / batch.id).exists()
    with pytest.raises(Conflict):
        registry.batches.finish(claim, "completed", counts=counts, output=output)
    assert len(registry.data_files.page(tenant=None, purpose="batch_output", after=None, limit=9)[0]) == 1
    assert registry.batches.states()["completed"] == 1


def test_a_cancelled_batch_never_completes(clocked: Clocked) -> None:
    batches, batch = clocked.registry.batches, clocked.submit()
    assert batches.cancel(clocked.submit().id, tenant="acme").state == "cancelled"
    claim = clocked.take(batch)
    batches.advance(claim, state="in_progress")
    assert batches.cancel(batch.id, tenant="acme").state == "cancelling"
    assert batches.cancel(batch.id, tenant="acme").state == "cancelling"
    assert batches.advance(claim, state="finalizing").state == "cancelling"
    assert batches.finish(claim, "completed", counts=BatchCounts()).state == "cancelled"
    with pytest.raises(Conflict, match="Cannot cancel a batch with status 'cancelled'"):
        batches.cancel(batch.id, tenant="acme")


def test_its_file_stays_until_it_has_ended_and_expires_then(clocked: Clocked) -> None:
    registry, batch = clocked.registry, clocked.submit()
    with pytest.raises(Conflict, match=batch.id) as refused:
        registry.data_files.delete(batch.input_file)
    assert refused.value.code == "file_in_use"
    registry.batches.cancel(batch.id, tenant="acme")
    registry.data_files.delete(batch.input_file)
    with pytest.raises(Conflict) as missing:
        registry.batches.submit(tenant="acme", endpoint="/v1/embeddings", input_file=batch.input_file, details={})
    assert missing.value.code == "file_not_found"


def test_batches_are_their_tenants_alone(clocked: Clocked) -> None:
    batches, batch = clocked.registry.batches, clocked.submit("acme")
    with pytest.raises(NotFound):
        batches.get(batch.id, tenant="globex")
    with pytest.raises(NotFound):
        batches.cancel(batch.id, tenant="globex")
    assert batches.page(tenant="globex", after=None, limit=9) == ([], False)
    more = [clocked.submit("acme") for _ in range(3)]
    assert batches.page(tenant="acme", after=more[2].id, limit=2) == ([more[1], more[0]], True)


def test_what_a_batch_that_ended_left_behind_is_deleted_and_nothing_else(clocked: Clocked) -> None:
    registry = clocked.registry
    going, ended = clocked.submit(), clocked.submit()
    registry.batches.cancel(ended.id, tenant="acme")
    for name in (going.id, ended.id, "batch_unknown"):
        (registry.home.batches / name).mkdir(parents=True)
    registry.collect(older_than=-1e12)
    assert [path.name for path in registry.home.batches.iterdir()] == [going.id]
    (registry.home.batches / ended.id).mkdir()
    registry.batches.remove_leftovers()
    assert [path.name for path in registry.home.batches.iterdir()] == [going.id]


def test_gateways_that_claim_at_once_get_different_batches(clocked: Clocked) -> None:
    submitted = {clocked.submit().id for _ in range(8)}
    claimed: list[str] = []

    def gateway() -> None:
        with Registry.open(clocked.registry.home, clock=lambda: clocked.now[0]) as registry:
            while (batch := registry.batches.claim("gateway")) is not None:
                claimed.append(batch.id)

    threads = [threading.Thread(target=gateway) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(claimed), set(claimed)) == (8, submitted)
