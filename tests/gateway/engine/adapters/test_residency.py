"""Residency: one load each, hard budgets, and held and pinned adapters are never evicted."""

from __future__ import annotations

import pytest

from tests.gateway.engine.adapters.residency_harness import SIZE, MakeWorld
from tunery.registry.errors import NotFound, Unavailable

# -- room -------------------------------------------------------------------------------------------------------------


def test_what_is_held_is_never_evicted_and_the_oldest_idle_goes_first(world: MakeWorld) -> None:
    w = world(3 * SIZE)
    w.take(1, 2, 3)
    assert w.hold(4) is None
    assert not w.residency.busy  # all are held: no room, and nothing was thrown out
    w.residency.release("d3")
    w.residency.release("d2")
    w.load(4)
    assert w.resident == [1, 2, 4]  # 3 was used longer ago than 2
    w.load(5)
    assert w.resident == [1, 4, 5]
    assert w.residency.evictions == {"acme/a3": 1, "acme/a2": 1}


def test_nothing_is_evicted_for_what_would_not_fit_even_then(world: MakeWorld) -> None:
    w = world(3 * SIZE)
    w.sizes[9] = 2 * SIZE
    w.load(1)
    w.take(2, 3)
    assert w.hold(9) is None
    assert sorted(w.resident) == [1, 2, 3]
    assert not w.residency.busy


def test_a_holder_more_keeps_it(world: MakeWorld) -> None:
    w = world(SIZE)
    w.take(1, 1)
    w.residency.release("d1")
    assert w.hold(2) is None
    assert w.resident == [1]
    assert w.residency.resident()[0].running == 1


def test_a_pinned_adapter_stays_until_it_is_unloaded(world: MakeWorld) -> None:
    w = world(2 * SIZE)
    w.load(1)
    w.residency.pin("d1")
    w.load(2, 3, 4)
    assert w.resident == [1, 4]
    assert [one.pinned for one in w.residency.resident()] == [True, False]
    w.take(4)
    assert w.hold(5) is None
    assert not w.residency.busy  # pinned and held fill the budget: it waits
    assert w.residency.unload("d1") == SIZE
    w.load(5, 1)
    assert not any(one.pinned for one in w.residency.resident())


def test_what_never_fits_beside_the_pinned_is_refused_at_once(world: MakeWorld) -> None:
    w = world(2 * SIZE)
    w.load(1, 2)
    w.residency.pin("d1")
    w.residency.pin("d1")
    w.load(3)  # in the place of 2
    w.residency.pin("d3")
    with pytest.raises(Unavailable, match=r"needs 100 bytes .* is 200, of which 200 are pinned: unload one") as caught:
        w.hold(2)
    assert caught.value.code == "adapter_too_large"
    w.residency.unload("d3")
    w.load(2)


def test_only_what_is_resident_can_be_pinned(world: MakeWorld) -> None:
    w = world(SIZE)
    with pytest.raises(NotFound, match="d1 is not resident"):
        w.residency.pin("d1")


def test_an_adapter_larger_than_the_budget_is_refused_with_both_figures_and_not_read(world: MakeWorld) -> None:
    w = world(1399)
    w.sizes[1] = 1400
    for _ in range(2):
        with pytest.raises(Unavailable, match="1,400 bytes and the adapter budget is 1,399") as caught:
            w.hold(1)
        assert caught.value.code == "adapter_too_large"
    w.want(1)
    assert w.reads == []
    assert not w.residency.busy


@pytest.mark.parametrize("on_disk", [SIZE, None])
def test_a_load_larger_than_its_file_suggested_gets_more_room_before_it_is_placed(
    world: MakeWorld, on_disk: int | None
) -> None:
    w = world(3 * SIZE)
    w.load(1)
    w.take(2)
    w.sizes[3], w.disk[3] = 2 * SIZE, on_disk
    assert w.hold(3) is None
    w.land()
    assert w.resident == [2, 3]
    assert w.residency.bytes == w.fullest == 3 * SIZE
    assert w.reads == [1, 2, 3]
    assert w.residency.loads["acme/a3"] == 1


def test_a_load_that_proves_larger_waits_when_there_is_no_room_and_comes_from_ram(world: MakeWorld) -> None:
    w = world(3 * SIZE, ram=2 * SIZE)
    w.take(1, 2)
    w.sizes[3], w.disk[3] = 2 * SIZE, SIZE
    assert w.hold(3) is None
    w.land()
    assert (w.resident, w.residency.bytes) == ([1, 2], 2 * SIZE)
    assert w.hold(3) is None
    assert not w.residency.busy  # its true size is known now
    w.residency.release("d1")
    w.load(3)
    assert w.resident == [2, 3]
    assert w.reads == [1, 2, 3]
    assert w.fullest <= 3 * SIZE
    assert w.residency.load_failures == {}


def test_two_loads_that_prove_larger_do_not_wait_for_each_other(world: MakeWorld) -> None:
    w = world(2 * SIZE)
    for number in (1, 2):
        w.sizes[number], w.disk[number] = 2 * SIZE, SIZE
        w.hold(number)
    w.land()
    assert w.resident == [2]  # 1 found no room beside 2's reservation, gave up its own, and 2 had it
    w.load(1)
    assert w.fullest == 2 * SIZE


def test_a_load_that_proves_larger_than_the_budget_is_refused_with_both_figures_and_read_once(world: MakeWorld) -> None:
    w = world(3 * SIZE, ram=9 * SIZE)
    w.sizes[1], w.disk[1] = 4 * SIZE, SIZE
    assert w.hold(1) is None
    w.land()
    for _ in range(3):
        with pytest.raises(Unavailable, match="400 bytes and the adapter budget is 300") as caught:
            w.hold(1)
        assert caught.value.code == "adapter_too_large"
        w.now += 100
    assert (w.reads, w.fullest, w.residency.bytes, w.residency.ram_bytes) == ([1], 0, 0, 0)
    assert w.residency.load_failures == {"acme/a1": 1}


def test_what_placing_enlarges_is_placed_anew_with_its_true_size(world: MakeWorld) -> None:
    w = world(3 * SIZE)
    w.grown[1] = SIZE
    w.load(1)
    assert w.residency.bytes == 2 * SIZE
    w.load(2)
    w.residency.unload("d1")
    w.load(3)
    assert w.hold(1) is None
    assert w.resident == [3]  # this time it reserves all at once
    assert w.reads == [1, 2, 3]


def test_what_placing_enlarges_beyond_the_room_there_is_waits(world: MakeWorld) -> None:
    w = world(2 * SIZE)
    w.grown[1] = SIZE
    w.take(2)
    assert w.hold(1) is None
    w.land()
    assert (w.resident, w.residency.bytes) == ([2], SIZE)
    w.residency.release("d2")
    w.load(1)
    assert (w.resident, w.residency.bytes) == ([1], 2 * SIZE)


def test_what_a_load_does_not_need_is_given_back(world: MakeWorld) -> None:
    w = world(3 * SIZE)
    w.disk[1] = 3 * SIZE
    assert w.hold(1) is None
    assert w.residency.bytes == 3 * SIZE
    w.land()
    assert w.residency.bytes == SIZE
    w.residency.unload("d1")
    assert w.hold(1) is None
    assert w.residency.bytes == SIZE  # learned


# -- RAM --------------------------------------------------------------------------------------------------------------


def test_what_was_evicted_comes_back_from_ram_without_reading(world: MakeWorld) -> None:
    w = world(SIZE, ram=3 * SIZE)
    w.load(1, 2, 3, 1, 2, 3)
    assert w.reads == [1, 2, 3]
    assert w.residency.ram_bytes == 3 * SIZE
    assert w.residency.loads == {"acme/a1": 2, "acme/a2": 2, "acme/a3": 2}


def test_without_a_ram_tier_the_disk_is_read_again(world: MakeWorld) -> None:
    w = world(SIZE)
    w.load(1, 2, 1)
    assert w.reads == [1, 2, 1]
    assert w.residency.ram_bytes == 0


def test_ram_keeps_what_was_used_or_resident_last(world: MakeWorld) -> None:
    w = world(2 * SIZE, ram=2 * SIZE)
    w.load(1, 2)
    w.load(3)  # 1 goes from the device, so its copy is the youngest, and 3's takes the place of 2's, which is resident
    assert w.residency.ram_bytes == 2 * SIZE
    w.load(1)
    assert w.reads == [1, 2, 3]
    w.load(2)
    assert w.reads == [1, 2, 3, 2]


def test_a_copy_larger_than_the_ram_budget_is_not_kept_and_drives_nothing_out(world: MakeWorld) -> None:
    w = world(3 * SIZE, ram=2 * SIZE)
    w.sizes[9] = 3 * SIZE
    w.load(1, 2, 9)
    assert w.residency.ram_bytes == 2 * SIZE
    w.load(1, 2)
    assert w.reads == [1, 2, 9]


# -- unloading --------------------------------------------------------------------------------------------------------


def test_unload_frees_both_tiers(world: MakeWorld) -> None:
    w = world(2 * SIZE, ram=2 * SIZE)
    w.load(1)
    assert (len(w.device), len(w.hosts)) == (1, 1)
    assert w.residency.unload("d1") == SIZE
    assert (len(w.device), len(w.hosts), w.residency.bytes, w.residency.ram_bytes) == (0, 0, 0, 0)
    assert w.residency.unload("d1") == 0
    assert w.residency.evictions == {}
    w.load(1)
    assert w.reads == [1, 1]


def test_unload_frees_a_copy_that_is_only_in_ram(world: MakeWorld) -> None:
    w = world(SIZE, ram=2 * SIZE)
    w.load(1, 2)
    assert w.residency.unload("d1") == 0
    assert w.residency.ram_bytes == SIZE


def test_unload_waits_for_the_last_holder_also_of_those_that_come_after_it(world: MakeWorld) -> None:
    w = world(2 * SIZE, ram=SIZE)
    w.take(1)
    w.residency.pin("d1")
    assert w.residency.unload("d1") == SIZE
    assert (w.residency.bytes, w.residency.ram_bytes) == (SIZE, 0)
    assert not w.residency.resident()[0].pinned
    assert w.hold(1) is not None
    w.residency.release("d1")
    assert w.residency.is_resident("d1")
    w.residency.release("d1")
    assert (w.resident, w.residency.bytes, len(w.device)) == ([], 0, 0)


@pytest.mark.parametrize("again", ["forget", "pin"])
def test_an_unload_still_to_come_is_taken_back(world: MakeWorld, again: str) -> None:
    w = world(2 * SIZE)
    w.take(1)
    w.residency.unload("d1")
    getattr(w.residency, again)("d1")
    w.residency.release("d1")
    assert w.resident == [1]


def test_a_load_that_was_unloaded_under_way_comes_to_nothing(world: MakeWorld) -> None:
    w = world(2 * SIZE, ram=SIZE)
    w.want(1)
    assert w.residency.unload("d1") == 0
    assert w.residency.bytes == SIZE  # the thread may be at it
    w.land()
    assert (w.resident, w.residency.bytes, w.residency.ram_bytes, len(w.hosts)) == ([], 0, 0, 0)


def test_an_unloaded_adapter_that_is_requested_again_stays(world: MakeWorld) -> None:
    w = world(2 * SIZE)
    w.want(1)
    w.residency.unload("d1")
    assert w.hold(1) is None
    w.land()
    assert (w.resident, w.reads) == ([1], [1])


def test_an_adapter_is_coming_from_the_start_of_its_load(world: MakeWorld) -> None:
    w = world(SIZE)
    seen = [w.residency.is_coming("d1")]
    w.hold(1)
    seen.append(w.residency.is_coming("d1"))
    w.land()
    seen.append(w.residency.is_coming("d1"))
    w.take(1)
    w.hold(2)  # no room
    assert [*seen, w.residency.is_coming("d2")] == [False, True, True, False]
