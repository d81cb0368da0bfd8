"""Metrics of several processes added up."""

from __future__ import annotations

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tunery.gateway.workers.snapshot import Snapshot, exposition, lasting, merge, take_snapshot


class Process:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("requests", "Requests.", ["adapter"], registry=self.registry)
        self.in_flight = Gauge("in_flight", "In flight.", registry=self.registry)
        self.engine = Gauge("engine_up", "The engine.", registry=self.registry)
        self.seconds = Histogram("seconds", "Seconds.", ["adapter"], buckets=(1, 2), registry=self.registry)

    def snapshot(self) -> Snapshot:
        # As it comes over a socket.
        return msgspec.msgpack.decode(msgspec.msgpack.encode(take_snapshot(self.registry)), type=Snapshot)


def values(text: bytes) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_one_process_says_what_it_says_itself() -> None:
    process = Process()
    process.requests.labels('a"\n').inc(3)
    process.seconds.labels("a").observe(1.5)
    assert exposition(process.snapshot()) == generate_latest(process.registry)


def test_counters_and_what_is_in_flight_add_up_and_the_engine_does_not() -> None:
    first, second = Process(), Process()
    for process, count in ((first, 3), (second, 4)):
        process.requests.labels("a").inc(count)
        process.in_flight.set(count)
        process.engine.set(1)
        process.seconds.labels("a").observe(count / 2)
    second.requests.labels("b").inc()
    merged = values(exposition(merge([first.snapshot(), second.snapshot()], shared={"engine_up"})))
    assert merged["requests_total", "a"] == 7
    assert merged["requests_total", "b"] == 1
    assert merged["in_flight", ""] == 7
    assert merged["engine_up", ""] == 1
    assert merged["seconds_bucket", "a,2.0"] == 2
    assert merged["seconds_sum", "a"] == 3.5


def test_counters_of_a_process_that_has_ended_stay() -> None:
    gone, left = Process(), Process()
    gone.requests.labels("a").inc(5)
    gone.in_flight.set(2)
    gone.engine.set(1)
    left.requests.labels("a").inc(1)
    merged = values(exposition(merge([lasting(gone.snapshot()), left.snapshot()])))
    assert merged["requests_total", "a"] == 6
    assert merged["in_flight", ""] == 0
    assert merged["engine_up", ""] == 0
