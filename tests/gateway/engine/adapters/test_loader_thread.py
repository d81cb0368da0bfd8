"""Loads run on one thread of low priority, one after the other."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from tests.gateway.engine.adapters.residency_harness import ManualExecutor
from tunery.gateway.engine.adapters.adapter import LoadedAdapter, LowRank
from tunery.gateway.engine.adapters.residency import Residency
from tunery.gateway.engine.composition import AdapterSource


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


def test_stretch_is_bytes_in_memory_per_byte_on_disk(tmp_path: Path) -> None:
    residency = Residency(1000, read, stretch=0.5, executor=ManualExecutor())
    residency.hold(on_disk(tmp_path, 1))
    assert residency.bytes == 200
