"""The machine's clock is set back: what has ended stays ended, and nobody waits until the clock is there again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry.artifacts import make_base
from tunery.gateway.api.http.admission import ALONE_AFTER, Admission
from tunery.gateway.tenancy.keyring import Keyring
from tunery.gateway.tenancy.steady_clock import SteadyClock
from tunery.registry.batches.batches import LEASE_SECONDS
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import Conflict
from tunery.registry.home import Home
from tunery.registry.jobs.queue import Claim
from tunery.registry.records import JobRequest
from tunery.registry.registry import Registry

HOUR = 3600.0


class Clock:
    """A wall clock that can be set, beside a monotonic one that cannot."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1_000_000.0, 50.0

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(home: Home, clock: Clock) -> Iterator[Registry]:
    with Registry.open(home, clock=lambda: clock.wall) as registry:
        yield registry


def test_a_steady_clock_goes_on_while_the_other_is_behind(clock: Clock) -> None:
    steady = SteadyClock(lambda: clock.wall, lambda: clock.monotonic)
    clock.pass_time(10)
    assert steady() == 1_000_010
    clock.wall -= HOUR
    clock.pass_time(5)
    assert steady() == 1_000_015
    clock.wall += 2 * HOUR
    assert steady() == clock.wall


async def test_a_key_that_has_ended_stays_ended(registry: Registry, clock: Clock) -> None:
    _, token = registry.keys.create(tenant="acme", scopes=("infer",), actor="test", seconds=60)
    revoked, other = registry.keys.create(tenant="acme", scopes=("infer",), actor="test")
    keyring = Keyring(registry, clock=SteadyClock(lambda: clock.wall, lambda: clock.monotonic))
    await keyring.start()
    try:
        assert await keyring.find(token) is not None
        clock.pass_time(61)
        assert await keyring.find(token) is None
        clock.wall -= HOUR
        assert await keyring.find(token) is None
        registry.keys.revoke(revoked.id)
        keyring._read()
        assert await keyring.find(other) is None
    finally:
        await keyring.stop()


def _submit(registry: Registry, folder: Path) -> str:
    base = registry.add_base(make_base(folder / "base"))
    (folder / "rows.jsonl").write_text("{}")
    file = registry.data_files.add(folder / "rows.jsonl", tenant="acme", purpose="fine-tune", name="rows.jsonl")
    request = JobRequest(adapter="acme/bot", trainer="lora", base=base.digest, data=(file.id,))
    return registry.queue.submit(request, tenant="acme").id


def test_a_dead_workers_job_is_claimed_again_although_its_lease_ends_in_an_hour(
    registry: Registry, clock: Clock, tmp_path: Path
) -> None:
    job = _submit(registry, tmp_path)
    first = registry.queue.claim("dies")
    assert first is not None
    clock.wall -= HOUR
    again = registry.queue.claim("lives")
    assert again is not None
    assert (again.id, again.fence) == (job, first.fence + 1)
    with pytest.raises(Conflict):
        registry.queue.beat(Claim(job, first.fence))


def test_a_live_workers_job_stays_its_own(registry: Registry, clock: Clock, tmp_path: Path) -> None:
    job = _submit(registry, tmp_path)
    claimed = registry.queue.claim("lives")
    assert claimed is not None
    clock.wall -= HOUR
    registry.queue.beat(Claim(job, claimed.fence))
    assert registry.queue.claim("other") is None
    clock.wall -= 2 * LEASE_SECONDS
    assert registry.queue.claim("other") is None, "so much may be the difference of two machines"


def test_limits_are_measured_by_a_clock_that_cannot_be_set(clock: Clock) -> None:
    admission = Admission(ServeSettings(max_batch=2, max_waiting=2), lambda count: None, clock=lambda: clock.monotonic)
    with admission.hold(1, tenant="globex"):
        clock.wall -= HOUR
        clock.pass_time(ALONE_AFTER + 1)
        with admission.hold(3, tenant="acme"):
            assert admission.count == 4
