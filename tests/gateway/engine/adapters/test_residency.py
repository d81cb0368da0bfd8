"""Residency: one load each, hard budgets, held and pinned adapters are never evicted, failures are remembered."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gateway.engine.adapters.residency_harness import SIZE, ManualExecutor, ResidencyHarness
from tunery.gateway.engine.adapters.adapter import LoadedAdapter, LowRank
from tunery.gateway.engine.adapters.loader import MAX_LOADS
from tunery.gateway.engine.adapters.residency import Residency
from tunery.gateway.engine.composition import AdapterSource
from tunery.registry.errors import ArtifactRefused, NotFound, StorageFailed, TuneryError, Unavailable

MakeWorld = Callable[..., ResidencyHarness]


@pytest.fixture
def world(tmp_path: Path) -> MakeWorld:
    def make(budget: int, *, ram: int = 0) -> ResidencyHarness:
        return ResidencyHarness(tmp_path, budget, ram=ram)

    return make


# -- on the real thread -----------------------------------------------------------------------------------------------


def on_disk(folder: Path, number: int) -> AdapterSource:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(bytes(400))
    return AdapterSource(f"d{number}", f"acme/a{number}", 1, {"adapter_model.safetensors": str(path)})


def read(source: AdapterSource) -> LoadedAdapter:
    return LoadedAdapter(source, {"q": LowRank(torch.zeros(1, 50), torch.zeros(50, 1))})


def settle(residency: Residency[Any], moved: threading.Event) -> None:
    """Wait for what the loads do last, then take them in."""
    assert moved.wait(60)
    while residency.busy:
        residency.poll()


def test_first_use_loads_and_the_second_is_a_hit(tmp_path: Path) -> None:
    placed = threading.Event()

    def place(host: LoadedAdapter) -> LoadedAdapter:
        placed.set()
        return host

    residency = Residency(4000, read, place=place)
    one = on_disk(tmp_path, 1)
    assert residency.hold(one) is None
    assert residency.bytes == 400
    settle(residency, placed)
    adapter = residency.hold(one, hit=False)
    assert adapter is not None
    assert adapter.bytes == 400 == residency.bytes
    assert residency.hold(one) is adapter
    assert (residency.loads, residency.hits) == ({"acme/a1": 1}, {"acme/a1": 1})
    assert [name for name, _ in residency.load_seconds] == ["acme/a1"]
    residency.close()


def test_where_placing_moves_nothing_both_tiers_are_one_object(tmp_path: Path) -> None:
    reads, done = [], threading.Event()

    def note(source: AdapterSource) -> LoadedAdapter:
        reads.append(read(source))
        done.set()
        return reads[-1]

    residency = Residency(400, note, ram_budget=800)
    for number in (1, 2, 1):
        assert residency.hold(on_disk(tmp_path, number)) is None
        settle(residency, done)
    assert residency.hold(on_disk(tmp_path, 1)) is reads[0]
    assert len(reads) == 2
    assert (residency.bytes, residency.ram_bytes) == (400, 800)
    residency.close()


def test_loads_run_one_at_a_time_in_order_on_one_thread_of_low_priority(tmp_path: Path) -> None:
    gate, seen, last = threading.Event(), [], threading.Event()

    def slow(source: AdapterSource) -> LoadedAdapter:
        gate.wait(60)
        nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) if sys.platform == "linux" else 19
        seen.append((source.digest, threading.get_ident(), nice))
        return read(source)

    def place(host: LoadedAdapter) -> LoadedAdapter:
        seen.append((host.source.digest, threading.get_ident(), seen[-1][2]))
        if host.source.digest == "d3":
            last.set()
        return host

    residency = Residency(4000, slow, place=place)
    for number in (1, 2, 3):
        residency.hold(on_disk(tmp_path, number))
    assert not residency.poll()  # nothing waits for the disk
    gate.set()
    settle(residency, last)
    assert [digest for digest, _, _ in seen] == ["d1", "d1", "d2", "d2", "d3", "d3"]
    assert len({thread for _, thread, _ in seen} - {threading.get_ident()}) == 1
    own = os.getpriority(os.PRIO_PROCESS, 0) if sys.platform == "linux" else 19
    assert {nice for _, _, nice in seen} == {min(own + 10, 19)}
    residency.close()


def test_many_requests_for_one_adapter_load_it_once(tmp_path: Path) -> None:
    gate, reads, done = threading.Event(), [], threading.Event()

    def slow(source: AdapterSource) -> LoadedAdapter:
        reads.append(source.digest)
        gate.wait(60)
        done.set()
        return read(source)

    residency = Residency(4000, slow)
    one = on_disk(tmp_path, 1)
    for _ in range(5):
        assert residency.hold(one) is None
        residency.want(one)
        assert residency.bytes == 400
    gate.set()
    settle(residency, done)
    assert reads == ["d1"]
    residency.close()


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


def test_stretch_is_bytes_in_memory_per_byte_on_disk(tmp_path: Path) -> None:
    residency = Residency(1000, read, stretch=0.5, executor=ManualExecutor())
    residency.hold(on_disk(tmp_path, 1))
    assert residency.bytes == 200


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


# -- errors -----------------------------------------------------------------------------------------------------------


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


# -- cost -------------------------------------------------------------------------------------------------------------


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
