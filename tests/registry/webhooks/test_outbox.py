"""Events are written with what they say, and every endpoint hears each once, whoever sends."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, select

from tests.registry.conftest import Publish
from tunery.registry.configuration.webhooks import EVENT_TYPES
from tunery.registry.errors import Conflict
from tunery.registry.home import Home
from tunery.registry.jobs.queue import Claim
from tunery.registry.jobs.success import Success, succeed
from tunery.registry.records import JobRequest
from tunery.registry.registry import Registry
from tunery.registry.storage import schema
from tunery.registry.webhooks.events import KEPT_SECONDS, append
from tunery.registry.webhooks.outbox import CLAIM_SECONDS, Delivery

URL, OTHER = "https://a.example/hook", "https://b.example/hook"


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(home: Home, clock: Clock) -> Iterator[Registry]:
    with Registry.open(home, clock=clock) as registry:
        yield registry


def written(home: Home) -> list[tuple[str, dict[str, object]]]:
    """The events in the database, oldest first."""
    engine = create_engine(f"sqlite:///{home.database}")
    with engine.connect() as connection:
        rows = connection.execute(select(schema.webhook_events).order_by(schema.webhook_events.c.number)).all()
    engine.dispose()
    return [(row.type, row.data) for row in rows]


def claim(registry: Registry, url: str = URL) -> Delivery | None:
    return registry.webhooks.claim(url, kinds=EVENT_TYPES)


def taken(registry: Registry, url: str = URL) -> Delivery:
    delivery = claim(registry, url)
    assert delivery is not None
    return delivery


def move(registry: Registry, *, to: int = 1, alias: str = "canary") -> None:
    registry.move_alias("acme/support", alias, to, actor="jane")


def submitted(registry: Registry) -> str:
    """The id of a new job in the queue."""
    rows = registry.home.root / "rows.jsonl"
    rows.write_text("{}\n")
    file = registry.data_files.add(rows, tenant="acme", purpose="fine-tune", name=rows.name)
    request = JobRequest(adapter="acme/bot", trainer="lora", base="b" * 64, data=(file.id,))
    return registry.queue.submit(request, tenant="acme").id


def test_every_end_of_a_queued_job_is_an_event(registry: Registry, home: Home, publish: Publish) -> None:
    cancelled = submitted(registry)
    registry.queue.request(cancelled, "cancel")
    failed = submitted(registry)
    job = registry.queue.claim("test")
    assert job is not None
    registry.queue.finish(Claim(failed, job.fence), "failed", error="no", code="schema")
    crashed = submitted(registry)
    for _ in range(5):
        job = registry.queue.claim("test")
        assert job is not None
        registry.queue.release(Claim(crashed, job.fence), crashed=True)
    stopped = submitted(registry)
    assert registry.queue.claim("test", lease=-1.0) is not None
    registry.queue.request(stopped, "cancel")
    assert registry.queue.claim("test") is None
    assert written(home) == [
        ("fine_tuning.job.cancelled", {"id": cancelled}),
        ("fine_tuning.job.failed", {"id": failed}),
        ("fine_tuning.job.failed", {"id": crashed}),
        ("fine_tuning.job.cancelled", {"id": stopped}),
    ]


def test_a_success_that_is_refused_leaves_no_event(registry: Registry, home: Home, publish: Publish) -> None:
    job_id = submitted(registry)
    stale, last = registry.queue.claim("test", lease=-1.0), registry.queue.claim("test")
    assert stale is not None
    assert last is not None
    version = publish()
    for fence, kinds in ((stale.fence, []), (last.fence, ["fine_tuning.job.succeeded"])):
        success = Success(job=job_id, claim=Claim(job_id, fence))
        with contextlib.suppress(Conflict), registry._database.write() as connection:
            succeed(success, connection, version, at=1.0)
        assert [kind for kind, _ in written(home)] == kinds


def test_a_pause_and_a_job_that_was_not_queued_are_none(registry: Registry, home: Home) -> None:
    registry.queue.request(submitted(registry), "pause")
    registry.start_job("local", adapter="acme/bot", trainer="lora")
    registry.update_job("local", state="failed", error="no")
    assert written(home) == []


def test_every_move_of_an_alias_is_an_event(registry: Registry, home: Home, publish: Publish) -> None:
    publish(seed=1, alias="production")
    publish(seed=2)
    move(registry, to=2, alias="production")
    registry.rollback("acme/support", actor="jane")
    registry.drop_alias("acme/support", "production", actor="jane")
    place = {"adapter": "acme/support", "alias": "production"}
    assert written(home) == [
        ("tunery.alias.moved", place | {"before": None, "after": 1, "kind": "publish", "actor": "test"}),
        ("tunery.alias.moved", place | {"before": 1, "after": 2, "kind": "move", "actor": "jane"}),
        ("tunery.alias.moved", place | {"before": 2, "after": 1, "kind": "rollback", "actor": "jane"}),
        ("tunery.alias.moved", place | {"before": 1, "after": None, "kind": "drop", "actor": "jane"}),
    ]
    with pytest.raises(Conflict):
        registry.move_alias("acme/support", "production", 1, actor="jane", expected=2)
    assert len(written(home)) == 4


def test_an_endpoint_hears_what_comes_after_it_was_configured(registry: Registry, publish: Publish) -> None:
    publish(alias="production")
    registry.webhooks.configure([URL])
    assert claim(registry) is None
    move(registry)
    assert taken(registry).event.data["alias"] == "canary"
    registry.webhooks.configure([URL, OTHER])
    assert claim(registry, OTHER) is None
    move(registry, alias="beta")
    assert taken(registry, OTHER).event.data["alias"] == "beta"


def test_an_endpoint_that_is_configured_again_hears_nothing_old(registry: Registry, publish: Publish) -> None:
    publish()
    registry.webhooks.configure([URL])
    move(registry)
    registry.webhooks.configure([])
    move(registry, alias="beta")
    registry.webhooks.configure([URL])
    assert claim(registry) is None


def test_what_is_configured_already_is_not_written_again(registry: Registry) -> None:
    registry.webhooks.configure([URL, OTHER])
    before = registry.changes()
    registry.webhooks.configure([OTHER, URL])
    assert registry.changes() == before
    registry.webhooks.configure([URL])
    assert registry.changes() != before


def test_other_types_are_passed_over(registry: Registry, publish: Publish) -> None:
    publish()
    registry.webhooks.configure([URL])
    move(registry)
    registry.queue.request(submitted(registry), "cancel")
    delivery = registry.webhooks.claim(URL, kinds=("fine_tuning.job.cancelled",))
    assert delivery is not None
    assert delivery.event.type == "fine_tuning.job.cancelled"
    assert registry.webhooks.pending().count == 1


def test_a_claimed_delivery_is_nobody_elses_until_its_time_is_over(
    registry: Registry, publish: Publish, clock: Clock
) -> None:
    publish()
    registry.webhooks.configure([URL])
    move(registry)
    first = taken(registry)
    assert claim(registry) is None
    clock.now += CLAIM_SECONDS
    again = taken(registry)
    assert (again.event, again.attempt) == (first.event, 2)
    registry.webhooks.settle(first, "given_up", error="late")
    assert registry.webhooks.pending().count == 1
    registry.webhooks.settle(again, "delivered")
    assert registry.webhooks.pending().count == 0
    clock.now += 10 * CLAIM_SECONDS
    assert claim(registry) is None


def test_a_deferred_delivery_waits_and_shows_its_error(registry: Registry, publish: Publish, clock: Clock) -> None:
    publish()
    registry.webhooks.configure([URL])
    move(registry)
    assert registry.webhooks.state(URL, kinds=EVENT_TYPES).pending == 1
    registry.webhooks.defer(taken(registry), until=clock.now + 600, error="HTTP 500")
    assert claim(registry) is None
    clock.now += 599
    assert claim(registry) is None
    assert registry.webhooks.pending().oldest_seconds == 599
    state = registry.webhooks.state(URL, kinds=EVENT_TYPES)
    assert (state.pending, state.error) == (1, "HTTP 500")
    clock.now += 1
    registry.webhooks.settle(taken(registry), "given_up", error="HTTP 410")
    state = registry.webhooks.state(URL, kinds=EVENT_TYPES)
    assert (state.pending, state.given_up, state.error) == (0, 1, "HTTP 410")


def test_events_are_deleted_when_their_time_is_over_and_numbers_go_on(
    registry: Registry, publish: Publish, clock: Clock, home: Home
) -> None:
    publish()
    registry.webhooks.configure([URL])
    move(registry)
    registry.webhooks.settle(taken(registry), "delivered")
    clock.now += KEPT_SECONDS + 1
    with registry._database.write() as connection:
        append(connection, "tunery.alias.moved", {"alias": "new"}, at=clock.now)
    assert len(written(home)) == 1
    assert registry.webhooks.state(URL, kinds=EVENT_TYPES).delivered == 0
    assert taken(registry).event.data == {"alias": "new"}


def _claim_all(home: Home) -> list[str]:
    ids = []
    with Registry.open(home, clock=lambda: 1_000_000.0) as registry:
        while (delivery := claim(registry)) is not None:
            ids.append(delivery.event.id)
            registry.webhooks.settle(delivery, "delivered")
    return ids


@pytest.mark.slow
def test_processes_that_claim_at_once_share_the_deliveries(registry: Registry, publish: Publish, home: Home) -> None:
    publish()
    registry.webhooks.configure([URL])
    for number in range(40):
        move(registry, alias=f"a{number}")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        claimed = [each for ids in pool.map(_claim_all, [home] * 3) for each in ids]
    assert len(claimed) == len(set(claimed)) == 40


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.sampled_from(["event", "deliver", "lose", "fail", "later", "give up"]), max_size=40))
def test_whatever_happens_every_event_is_delivered_or_given_up(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    clock = Clock()
    with Registry.open(Home(tmp_path_factory.mktemp("outbox")), clock=clock) as registry:
        registry.webhooks.configure([URL])
        added, ended = 0, list[str]()
        for step in [*steps, *["later", "deliver"] * len(steps)]:
            if step == "event":
                with registry._database.write() as connection:
                    append(connection, "tunery.alias.moved", {"number": added}, at=clock.now)
                added += 1
            elif step == "later":
                clock.now += CLAIM_SECONDS
            elif (delivery := claim(registry)) is not None:
                assert delivery.event.id not in ended
                if step == "deliver":
                    registry.webhooks.settle(delivery, "delivered")
                    ended.append(delivery.event.id)
                elif step == "give up":
                    registry.webhooks.settle(delivery, "given_up", error="no")
                    ended.append(delivery.event.id)
                elif step == "fail":
                    registry.webhooks.defer(delivery, until=clock.now + 1, error="no")
        assert len(ended) == added
        assert registry.webhooks.pending().count == 0
