"""Loads that fail: who is told, how long it is remembered, and what is tried again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.gateway.engine.adapters.residency_harness import SIZE, MakeWorld
from tunery.registry.errors import ArtifactRefused, StorageFailed, TuneryError, Unavailable


def test_every_request_for_a_broken_adapter_fails_and_the_disk_is_not_read_again(world: MakeWorld) -> None:
    w = world(SIZE)
    w.broken[1] = error = ArtifactRefused("broken")
    assert w.hold(1) is None
    w.land()
    depths = []
    for _ in range(5):
        w.now += 1e9
        with pytest.raises(ArtifactRefused) as caught:
            w.hold(1)
        assert caught.value is error
        depths.append(len(caught.traceback))
    assert len(set(depths)) == 1  # one object raised many times does not grow
    assert (w.reads, w.residency.bytes) == ([1], 0)
    assert w.residency.load_failures == {"acme/a1": 1}


def test_an_operator_can_have_it_tried_again(world: MakeWorld) -> None:
    w = world(SIZE)
    w.broken[1] = ArtifactRefused("broken")
    w.hold(1)
    w.land()
    del w.broken[1]
    w.residency.forget("d1")
    w.load(1)


def test_a_file_of_the_wrong_size_is_measured_again_on_an_operators_request(world: MakeWorld) -> None:
    w = world(SIZE)
    w.disk[1] = 2 * SIZE
    heals: tuple[Callable[[], object], ...] = (lambda: None, lambda: w.disk.pop(1))
    for heal in heals:
        with pytest.raises(Unavailable):
            w.hold(1)
        heal()
    w.residency.forget("d1")
    w.load(1)


def test_a_temporary_failure_is_retried_after_1_second_doubling_to_60(world: MakeWorld) -> None:
    w = world(SIZE)
    w.broken[1] = StorageFailed("no file")
    for delay in (1, 2, 4, 8, 16, 32, 60, 60):
        assert w.hold(1) is None
        w.land()
        w.now += delay - 0.5
        for _ in range(3):
            with pytest.raises(StorageFailed, match="no file"):
                w.hold(1)
        w.now += 0.5
    assert len(w.reads) == 8
    del w.broken[1]
    w.load(1)  # heals by itself
    w.residency.unload("d1")
    w.broken[1] = StorageFailed("no file")
    w.hold(1)
    w.land()
    w.now += 1  # and counts from one again
    assert w.hold(1) is None


def test_what_nobody_expected_is_unavailable_and_its_text_stays_in_the_log(
    world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    w = world(SIZE)
    w.unplaceable[1] = RuntimeError("secret path")
    w.hold(1)
    w.land()
    with pytest.raises(Unavailable, match=r"acme/a1@1 failed \(RuntimeError\)") as caught:
        w.hold(1)
    assert "secret" not in caught.value.message
    assert "secret path" in caplog.text
    w.now += 1
    w.unplaceable.clear()
    w.load(1)


def test_a_remembered_error_does_not_keep_what_was_read(world: MakeWorld) -> None:
    w = world(SIZE)
    w.unplaceable[1] = StorageFailed("memory")
    w.unplaceable[1].__cause__ = ValueError("deeper")
    w.hold(1)
    w.land()
    assert w.reads == [1]
    assert len(w.hosts) == 0
    with pytest.raises(StorageFailed) as caught:
        w.hold(1)
    assert caught.value.__cause__ is None


def test_the_last_1000_refused_digests_are_remembered(world: MakeWorld) -> None:
    w = world(SIZE)

    def refuse(number: int, error: type[TuneryError] = ArtifactRefused) -> None:
        w.broken[number] = error("broken")
        assert w.hold(number) is None
        w.land()

    def refused(number: int) -> bool:
        with pytest.raises(ArtifactRefused):
            w.hold(number)
        return True

    refuse(1, StorageFailed)
    for number in range(2, 1001):
        refuse(number)
    w.now += 1
    refuse(1)  # again
    assert refused(2)
    refuse(1001)
    assert all(refused(number) for number in (1, 2, 4, 1001))
    assert w.hold(3) is None  # was asked about longest ago


def test_sizes_are_asked_for_at_the_load_and_never_again(world: MakeWorld) -> None:
    w = world(300 * SIZE, ram=100 * SIZE)
    w.take(*range(300))
    asked = Counter({one.source.digest: one.size_reads for one in (*w.device, *w.hosts)})
    for _ in range(10):
        assert w.hold(999) is None
        w.want(998)
        w.take(5)
        w.residency.release("d5")
        assert w.residency.bytes == 300 * SIZE
    assert len(w.residency.resident()) == 300
    assert asked == {one.source.digest: one.size_reads for one in (*w.device, *w.hosts)}
