"""The queue: who is next, that only the last claim counts, and what stopping and resuming do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.registry.artifacts import make_adapter
from tests.registry.conftest import Publish
from tunery.registry import Base, NewVersion
from tunery.registry.errors import Conflict, NotFound
from tunery.registry.home import Home
from tunery.registry.jobs.history import Note
from tunery.registry.jobs.job_queue import LEASE_SECONDS
from tunery.registry.jobs.queue import BODY_DIGEST, MAX_CRASHES, Claim, ClaimLimits
from tunery.registry.jobs.success import Success
from tunery.registry.jobs.table import Filter
from tunery.registry.records import Job, JobRequest
from tunery.registry.registry import Registry


@dataclass
class Clocked:
    """A registry whose time the test sets."""

    registry: Registry
    file: str = ""
    now: list[float] = field(default_factory=lambda: [1000.0])

    def submit(self, tenant: str = "acme", *, priority: int = 0, **more: object) -> Job:
        self.now[0] += 1
        request = JobRequest(adapter=f"{tenant}/bot", trainer="lora", base="b" * 64, data=(self.file,))
        return self.registry.queue.submit(request, tenant=tenant, priority=priority, **more)  # type: ignore[arg-type]

    def claim(self, *, per_tenant: int = 0) -> Claim | None:
        job = self.registry.queue.claim("worker", limits=ClaimLimits(per_tenant=per_tenant))
        return Claim(job.id, job.fence) if job else None

    def take(self, job: Job) -> Claim:
        claim = self.claim()
        assert claim is not None
        assert claim.job == job.id
        return claim

    def pass_time(self, seconds: float) -> None:
        self.now[0] += seconds

    def state(self, job: Job) -> str:
        return self.registry.job(job.id).state

    def kinds(self, job: Job) -> list[str]:
        return [event.kind for event in self.registry.queue.events_after(job.id, 0)]


@pytest.fixture
def clocked(home: Home, tmp_path: Path) -> Iterator[Clocked]:
    now = [1000.0]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    with Registry.open(home, clock=lambda: now[0]) as registry:
        file = registry.data_files.add(rows, tenant="acme", purpose="fine-tune", name="rows.jsonl")
        yield Clocked(registry, file.id, now)


# -- who is next -------------------------------------------------------------------------------------------------------


def test_the_highest_priority_goes_first_and_then_the_oldest(clocked: Clocked) -> None:
    jobs = [clocked.submit(priority=priority) for priority in (0, 0, 5, -1)]
    claimed = [clocked.claim() for _ in range(5)]
    assert [claim and claim.job for claim in claimed] == [jobs[2].id, jobs[0].id, jobs[1].id, jobs[3].id, None]


def test_tenants_take_turns_however_much_one_of_them_submits(clocked: Clocked) -> None:
    greedy = [clocked.submit("acme") for _ in range(4)]
    modest = [clocked.submit("globex") for _ in range(2)]
    order = []
    for _ in range(6):
        claim = clocked.claim()
        assert claim is not None
        order.append(claim.job)
        clocked.registry.queue.finish(claim, "failed", error="over")
        clocked.pass_time(1)
    assert order == [greedy[0].id, modest[0].id, greedy[1].id, modest[1].id, greedy[2].id, greedy[3].id]


def test_a_tenant_has_no_more_running_jobs_than_allowed(clocked: Clocked) -> None:
    first, _, other = clocked.submit("acme"), clocked.submit("acme"), clocked.submit("globex")
    claims = [clocked.claim(per_tenant=1) for _ in range(3)]
    assert [claim and claim.job for claim in claims] == [first.id, other.id, None]


def test_a_job_that_needs_more_memory_than_there_is_is_passed_over(clocked: Clocked) -> None:
    large, small = clocked.submit(), clocked.submit()
    claim = clocked.take(large)
    clocked.registry.queue.report(claim, [], progress={"needed_bytes": 100, "peak_bytes": 70})
    assert clocked.registry.queue.reserved("worker") == {large.id: 70}
    clocked.registry.queue.release(claim, waiting="it needs memory")
    claimed = []
    for memory in (99, 99, 100):
        job = clocked.registry.queue.claim("worker", limits=ClaimLimits(memory=memory))
        claimed.append(job and job.id)
    assert claimed == [small.id, None, large.id]
    assert clocked.registry.queue.reserved("other") == {}


def test_a_job_that_a_process_runs_by_itself_is_nobody_elses(clocked: Clocked) -> None:
    clocked.registry.start_job("job-1", adapter="acme/bot", trainer="lora")
    clocked.pass_time(10 * LEASE_SECONDS)
    assert clocked.claim() is None


def test_one_job_is_claimed_once_however_many_workers_ask(clocked: Clocked) -> None:
    jobs = {clocked.submit().id for _ in range(8)}
    claimed: list[str] = []

    def work() -> None:
        with Registry.open(clocked.registry.home, clock=lambda: clocked.now[0]) as registry:
            while (job := registry.queue.claim("worker")) is not None:
                claimed.append(job.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(jobs)


# -- only the last claim counts ----------------------------------------------------------------------------------------


def test_a_claim_lasts_as_long_as_it_is_renewed(clocked: Clocked) -> None:
    job = clocked.submit()
    claim = clocked.take(job)
    for _ in range(5):
        clocked.pass_time(0.9 * LEASE_SECONDS)
        assert clocked.registry.queue.beat(claim) is None
        assert clocked.claim() is None
    clocked.pass_time(1.1 * LEASE_SECONDS)
    assert clocked.take(job).fence == claim.fence + 1


def test_a_worker_that_lost_its_claim_changes_nothing(clocked: Clocked, publish: Publish, tmp_path: Path) -> None:
    job = clocked.submit()
    lost = clocked.take(job)
    clocked.pass_time(1.1 * LEASE_SECONDS)
    clocked.take(job)
    before = clocked.registry.job(job.id), clocked.kinds(job)
    queue = clocked.registry.queue
    for act in (
        lambda: queue.beat(lost),
        lambda: queue.report(lost, [Note(kind="step", message="")]),
        lambda: queue.release(lost),
        lambda: queue.finish(lost, "failed", error="late"),
    ):
        with pytest.raises(Conflict) as refused:
            act()
        assert refused.value.code == "claim_lost"
    assert (clocked.registry.job(job.id), clocked.kinds(job)) == before


@pytest.fixture
def made(clocked: Clocked, tmp_path: Path) -> NewVersion:
    from tests.registry.artifacts import make_base

    base: Base = clocked.registry.add_base(make_base(tmp_path / "base"))
    return NewVersion(
        adapter="acme/bot",
        folder=make_adapter(tmp_path / "adapter", seed=0),
        base=base,
        method="lora",
        manifest={},
        metrics={},
        actor="test",
    )


def test_a_version_and_its_jobs_success_are_one(clocked: Clocked, made: NewVersion) -> None:
    job = clocked.submit()
    success = Success(
        job=job.id,
        claim=clocked.take(job),
        model_name="ft:tiny:acme::1",
        notes=lambda version: [Note(kind="succeeded", message=version.name)],
    )
    version = clocked.registry.publish(made, job=success)
    ended = clocked.registry.job(job.id)
    assert (ended.state, ended.version, ended.lease_until, ended.finished_at) == (
        "succeeded", version.number, None, clocked.now[0],
    )  # fmt: skip
    assert clocked.registry.queue.named_versions() == {"ft:tiny:acme::1": clocked.registry.resolve("acme/bot")}
    assert [event.message for event in clocked.registry.queue.events_after(job.id, 0)] == ["acme/bot@1"]
    clocked.registry.remove("acme/bot@1", actor="test")
    assert clocked.registry.queue.names() == {}


def test_a_lost_worker_cannot_publish(clocked: Clocked, made: NewVersion) -> None:
    job = clocked.submit()
    lost = clocked.take(job)
    clocked.pass_time(1.1 * LEASE_SECONDS)
    last = clocked.take(job)
    with pytest.raises(Conflict, match="no longer this worker's"):
        clocked.registry.publish(made, job=Success(job=job.id, claim=lost, model_name="ft:a"))
    assert clocked.registry.versions() == []
    assert clocked.registry.queue.names() == {}
    clocked.registry.publish(made, job=Success(job=job.id, claim=last))
    with pytest.raises(Conflict, match="no longer this worker's"):
        clocked.registry.publish(made, job=Success(job=job.id, claim=last))
    assert [version.name for version in clocked.registry.versions()] == ["acme/bot@1"]


@pytest.mark.parametrize("noticed", [False, True], ids=["the worker dies too", "its worker gives it back"])
def test_a_job_whose_processes_all_die_fails(noticed: bool, clocked: Clocked) -> None:
    job = clocked.submit()
    for _ in range(MAX_CRASHES):
        claim = clocked.take(job)
        clocked.registry.queue.report(claim, [], progress={"rows": 20})
        if noticed:
            clocked.registry.queue.release(claim, waiting="killed by signal 9", crashed=True)
        else:
            clocked.pass_time(1.1 * LEASE_SECONDS)
    assert clocked.claim() is None
    ended = clocked.registry.job(job.id)
    assert (ended.state, ended.code) == ("failed", "worker_lost")
    assert clocked.kinds(job) == ["interrupted"] * (MAX_CRASHES - 1) + ["failed"]
    reason = "killed by signal 9" if noticed else "the worker that ran it is gone"
    (first, *_) = clocked.registry.queue.events_after(job.id, 0)
    assert (first.level, first.data) == ("warn", {"reason": reason})
    assert first.message == (
        f"The job was interrupted: {reason}. It goes on from its last checkpoint, or from the start"
    )  # fmt: skip


def test_a_job_that_makes_progress_may_lose_any_number_of_processes(clocked: Clocked) -> None:
    job = clocked.submit()
    for step in range(3 * MAX_CRASHES):
        claim = clocked.take(job)
        clocked.registry.queue.report(claim, [], progress={"step": step})
        clocked.registry.queue.release(claim, crashed=True)
    interrupted = clocked.kinds(job)
    for _ in range(3 * MAX_CRASHES):  # nor does it matter how often it is given back in good order
        clocked.registry.queue.release(clocked.take(job))
    assert clocked.state(job) == "queued"
    assert clocked.kinds(job) == interrupted == ["interrupted"] * (3 * MAX_CRASHES)


# -- stopping and resuming ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "state"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_waiting_job_stops_at_once(wanted: str, state: str, clocked: Clocked) -> None:
    job = clocked.submit()
    assert clocked.registry.queue.request(job.id, wanted).state == state  # type: ignore[arg-type]
    assert clocked.claim() is None
    assert clocked.kinds(job) == [state]


@pytest.mark.parametrize(("wanted", "state"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_running_job_hears_of_it_or_stops_when_its_worker_is_gone(wanted: str, state: str, clocked: Clocked) -> None:
    job = clocked.submit()
    claim = clocked.take(job)
    assert clocked.registry.queue.request(job.id, wanted).state == "running"  # type: ignore[arg-type]
    assert clocked.registry.queue.beat(claim) == wanted
    clocked.pass_time(1.1 * LEASE_SECONDS)
    assert clocked.claim() is None
    assert clocked.state(job) == state


def test_a_paused_job_waits_until_it_is_resumed(clocked: Clocked) -> None:
    job = clocked.submit()
    clocked.registry.queue.request(job.id, "pause")
    with pytest.raises(Conflict, match="is paused and cannot be paused"):
        clocked.registry.queue.request(job.id, "pause")
    assert clocked.registry.queue.resume(job.id).state == "queued"
    with pytest.raises(Conflict, match="only a job that is paused or has failed can be resumed"):
        clocked.registry.queue.resume(job.id)
    clocked.take(job)
    assert clocked.kinds(job) == ["paused", "resumed"]


def test_a_failed_job_can_be_resumed(clocked: Clocked) -> None:
    job = clocked.submit()
    for _ in range(MAX_CRASHES):
        clocked.registry.queue.release(clocked.take(job), waiting="it died", crashed=True)
    failed = clocked.registry.job(job.id)
    assert (failed.state, failed.code) == ("failed", "worker_lost")
    resumed = clocked.registry.queue.resume(job.id)
    assert (resumed.state, resumed.error, resumed.code, resumed.finished_at) == ("queued", None, None, None)
    # It may crash as often again.
    clocked.registry.queue.release(clocked.take(job), waiting="it died", crashed=True)
    assert clocked.state(job) == "queued"
    assert clocked.kinds(job)[-2:] == ["resumed", "interrupted"]


def test_a_job_whose_steps_are_all_trained_cannot_be_paused(clocked: Clocked) -> None:
    job, queue = clocked.submit(), clocked.registry.queue
    claim = clocked.take(job)
    queue.report(claim, [], progress={"steps": 4})
    queue.report(claim, [], progress={"step": 3, "steps": 4})
    assert queue.request(job.id, "pause").wanted == "pause"
    queue.report(claim, [], progress={"step": 4, "steps": 4})
    with pytest.raises(Conflict, match=r"all of its 4 steps.*can still be cancelled") as refused:
        queue.request(job.id, "pause")
    assert refused.value.code == "job_finishing"
    assert queue.request(job.id, "cancel").wanted == "cancel"
    # Back in the queue it can be paused, as nothing is under way.
    other = clocked.submit()
    claim = clocked.take(other)
    queue.report(claim, [], progress={"step": 4, "steps": 4})
    queue.release(claim)
    assert queue.request(other.id, "pause").state == "paused"


def test_a_failed_job_that_never_began_needs_its_files(clocked: Clocked) -> None:
    jobs = [clocked.submit(), clocked.submit()]
    reported: list[dict[str, object]] = [{"rows": 20}, {"parameters": {"epochs": 1}}]
    for job, progress in zip(jobs, reported, strict=True):
        claim = clocked.take(job)
        clocked.registry.queue.report(claim, [], progress=progress)
        clocked.registry.queue.finish(claim, "failed", error="no", code="schema")
    clocked.registry.data_files.delete(clocked.file)
    with pytest.raises(Conflict, match=f"{clocked.file} was deleted meanwhile") as refused:
        clocked.registry.queue.resume(jobs[0].id)
    assert (refused.value.code, refused.value.param) == ("file_not_found", "training_file")
    assert clocked.state(jobs[0]) == "failed"
    assert clocked.kinds(jobs[0]) == []
    assert clocked.registry.queue.resume(jobs[1].id).state == "queued"


def test_a_job_that_has_ended_cannot_be_stopped(clocked: Clocked) -> None:
    job = clocked.submit()
    clocked.registry.queue.request(job.id, "cancel")
    with pytest.raises(Conflict) as refused:
        clocked.registry.queue.request(job.id, "cancel")
    assert refused.value.code == "job_ended"
    with pytest.raises(NotFound):
        clocked.registry.queue.request("ftjob-none", "cancel")


def test_a_job_given_back_waits_and_says_why(clocked: Clocked) -> None:
    job = clocked.submit()
    clocked.registry.queue.release(clocked.take(job), waiting="its worker stopped")
    assert (clocked.state(job), clocked.registry.job(job.id).waiting) == ("queued", "its worker stopped")
    clocked.take(job)
    assert clocked.registry.job(job.id).waiting is None


# -- submitting and listing --------------------------------------------------------------------------------------------


def test_a_repeated_key_is_one_job_for_each_tenant(clocked: Clocked) -> None:
    first = clocked.submit(idempotency_key="k")
    assert clocked.submit(idempotency_key="k") == first
    assert clocked.submit("globex", idempotency_key="k").id != first.id
    assert clocked.submit().id != first.id


def test_a_key_with_another_body_is_refused(clocked: Clocked) -> None:
    first = clocked.submit(idempotency_key="k", details={BODY_DIGEST: "a"})
    assert clocked.submit(idempotency_key="k", details={BODY_DIGEST: "a"}) == first
    with pytest.raises(Conflict, match=f"was used for {first.id}") as refused:
        clocked.submit(idempotency_key="k", details={BODY_DIGEST: "b"})
    assert (refused.value.code, refused.value.param) == ("idempotency_key_reused", "Idempotency-Key")
    assert [job.id for job in clocked.registry.jobs()] == [first.id]
    # A job that was made before digests were kept.
    old = clocked.submit(idempotency_key="old", details={})
    assert clocked.submit(idempotency_key="old", details={BODY_DIGEST: "b"}) == old


def test_a_job_whose_file_is_gone_is_refused(clocked: Clocked) -> None:
    clocked.registry.data_files.delete(clocked.file)
    with pytest.raises(Conflict) as refused:
        clocked.submit()
    assert refused.value.code == "file_not_found"
    assert clocked.registry.jobs() == []


def test_pages_have_every_job_once(clocked: Clocked) -> None:
    jobs = [clocked.submit(details={"metadata": {"team": "a" if i % 2 else "b"}}).id for i in range(7)][::-1]
    clocked.registry.start_job("job-1", adapter="acme/bot", trainer="lora")
    seen, after, more = list[str](), None, True
    while more:
        page, more = clocked.registry.queue.page(Filter(tenant="acme", after=after, queued_only=True), limit=3)
        seen += [job.id for job in page]
        after = seen[-1]
    assert seen == jobs
    page, _ = clocked.registry.queue.page(Filter(metadata={"team": "a"}), limit=10)
    assert [job.id for job in page] == jobs[1::2]
    page, _ = clocked.registry.queue.page(Filter(metadata=None), limit=10)
    assert [job.id for job in page] == ["job-1"]
    assert clocked.registry.queue.page(Filter(tenant="globex"), limit=10) == ([], False)


# -- history -----------------------------------------------------------------------------------------------------------


def test_a_history_has_no_gaps_whoever_writes_it(clocked: Clocked) -> None:
    job = clocked.submit(notes=[Note(kind="created", message="")])
    claim = clocked.take(job)

    def write(name: str) -> None:
        with Registry.open(clocked.registry.home, clock=lambda: clocked.now[0]) as registry:
            for number in range(20):
                registry.queue.report(claim, [Note(kind=name, message=str(number)), Note(kind=name, message="")])

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = clocked.registry.queue.events_after(job.id, 0)
    assert [event.number for event in events] == list(range(1, 122))
    for name in "abc":
        assert [event.message for event in events if event.kind == name and event.message] == [*map(str, range(20))]
    newest, more = clocked.registry.queue.events_before(job.id, None, limit=2)
    assert ([event.number for event in newest], more) == ([121, 120], True)
    oldest, more = clocked.registry.queue.events_before(job.id, 3, limit=5)
    assert ([event.number for event in oldest], more) == ([2, 1], False)
    with pytest.raises(NotFound):
        clocked.registry.queue.events_before(job.id, 500, limit=5)
