"""Which cold adapters are loaded ahead, and what their loads may evict."""

from __future__ import annotations

import pytest

from tests.gateway.engine.adapters.residency_harness import SIZE, MakeWorld
from tunery.gateway.engine.adapters.loader import MAX_LOADS
from tunery.registry.errors import ArtifactRefused

# -- turns ------------------------------------------------------------------------------------------------------------


def test_few_loads_are_begun_ahead_so_that_many_cold_adapters_do_not_keep_another_waiting(world: MakeWorld) -> None:
    w = world(300 * SIZE)
    for number in range(200):
        w.want(number)
    for number in range(200):
        assert w.hold(number) is None
    assert w.executor.digests() == ["d0", "d1", "d2", "d3"]
    assert w.residency.bytes == MAX_LOADS * SIZE
    w.executor.run()
    assert w.hold(500) is None
    assert "d500" not in w.executor.digests()  # what is done and not taken in counts
    w.residency.poll()
    assert w.hold(500) is None
    w.want(4)
    assert w.executor.digests() == ["d1", "d2", "d3", "d500"]


def test_an_adapter_that_only_waits_for_its_turn_is_coming_and_one_that_lacks_room_is_not(world: MakeWorld) -> None:
    w = world(6 * SIZE)
    w.take(0)
    w.load(1)
    w.sizes[8] = 2 * SIZE
    for number in (2, 3, 4, 5, 7, 8):
        assert w.hold(number) is None
    assert w.executor.digests() == ["d2", "d3", "d4", "d5"]
    assert w.resident == [0, 1]  # nothing goes for what cannot be loaded now
    assert [w.residency.is_coming(f"d{number}") for number in (5, 6, 7, 8)] == [True, False, True, False]
    w.take(1)
    w.want(7)
    assert w.residency.is_coming("d7")  # until a request asks anew
    assert w.hold(7) is None
    assert not w.residency.is_coming("d7")
    w.residency.release("d0")
    assert w.hold(7) is None
    w.land()
    assert w.residency.is_coming("d7")  # its turn is yet to come
    w.load(7)
    w.residency.unload("d7")
    assert not w.residency.is_coming("d7")


# -- prefetching ------------------------------------------------------------------------------------------------------


def test_want_loads_into_free_room_and_in_place_of_what_is_idle(world: MakeWorld) -> None:
    w = world(2 * SIZE)
    w.load(1, 2)
    w.want(3)
    w.want(2)  # is here already
    w.land()
    assert w.resident == [2, 3]
    assert w.residency.hits == {}


def test_want_leaves_alone_what_is_held_or_pinned(world: MakeWorld) -> None:
    w = world(2 * SIZE)
    w.load(1)
    w.residency.pin("d1")
    w.take(2)
    w.want(3)
    assert not w.residency.busy


def test_want_evicts_nothing_when_what_it_may_evict_does_not_suffice(world: MakeWorld) -> None:
    w = world(2 * SIZE)
    w.load(1)
    w.want(2)
    w.land()
    w.sizes[3] = 2 * SIZE
    w.want(3)
    assert (w.resident, w.residency.busy) == ([1, 2], False)


def test_wants_repeated_each_step_do_not_drive_each_other_out(world: MakeWorld) -> None:
    w = world(2 * SIZE)
    for _ in range(5):
        for number in (1, 2, 3):
            w.want(number)
        w.land()
    assert (w.resident, w.reads) == ([1, 2], [1, 2])


def test_a_want_gives_way_once_it_is_used_or_repeated_no_more(world: MakeWorld) -> None:
    w = world(2 * SIZE)
    w.want(1)
    w.want(2)
    w.land()
    w.want(3)
    assert not w.residency.busy
    w.want(2)
    w.want(3)  # nobody wanted 1 since 3 was wanted last
    w.land()
    assert w.resident == [2, 3]
    w.take(2)
    w.residency.release("d2")
    w.want(4)
    w.land()
    assert w.resident == [3, 4]


def test_a_request_may_evict_what_is_only_wanted(world: MakeWorld) -> None:
    w = world(SIZE)
    w.want(1)
    w.land()
    w.load(2)
    assert w.resident == [2]


def test_a_prefetched_adapter_counts_as_used_when_its_load_ends(world: MakeWorld) -> None:
    w = world(3 * SIZE)
    w.load(1)
    w.want(2)
    w.take(1)
    w.residency.release("d1")
    w.land()
    w.load(3, 4)
    assert w.resident == [2, 3, 4]
    assert w.residency.evictions == {"acme/a1": 1}


def test_a_request_takes_over_a_prefetch_with_its_own_claim_to_room(world: MakeWorld) -> None:
    w = world(3 * SIZE)
    w.want(1)
    w.land()
    w.sizes[2], w.disk[2] = 3 * SIZE, SIZE
    w.want(2)
    w.land()
    assert w.resident == [1]  # no more room for a mere want
    w.residency.forget("d2")
    w.want(2)
    w.want(1)
    w.hold(2)
    w.land()
    assert w.resident == [2]


def test_want_never_raises_and_does_not_read_what_is_refused(world: MakeWorld) -> None:
    w = world(SIZE)
    w.broken[1] = ArtifactRefused("broken")
    for _ in range(3):
        w.want(1)
        w.land()
    assert w.reads == [1]
    with pytest.raises(ArtifactRefused):
        w.hold(1)
