"""Adapters in memory: one load each, a hard budget, nothing held is evicted."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery.gateway.engine.adapter import LoadedAdapter, LowRank
from tunery.gateway.engine.messages import AdapterSource
from tunery.gateway.engine.residency import Residency
from tunery.registry.errors import ArtifactRefused, Unavailable

SIZE = 400


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "adapter_model.safetensors"
    path.write_bytes(bytes(SIZE))
    return path


def source(weights: Path, number: int) -> AdapterSource:
    return AdapterSource(f"digest-{number}", f"acme/a{number}", 1, {"adapter_model.safetensors": str(weights)})


def load(source: AdapterSource) -> LoadedAdapter:
    return LoadedAdapter(source, {"q": LowRank(torch.zeros(1, 50), torch.zeros(50, 1))})


def settle(residency: Residency) -> None:
    while residency.busy:
        residency.poll()


def test_first_use_loads_and_the_second_is_a_hit(weights: Path) -> None:
    residency = Residency(10 * SIZE, load)
    one = source(weights, 1)
    assert residency.hold(one) is None
    settle(residency)
    adapter = residency.hold(one, hit=False)
    assert adapter is not None
    assert adapter.bytes == SIZE == residency.bytes
    assert residency.hold(one) is adapter
    assert (residency.loads, residency.hits) == ({"acme/a1": 1}, {"acme/a1": 1})
    residency.close()


def test_many_requests_for_one_adapter_load_it_once(weights: Path) -> None:
    gate, loads = threading.Event(), []

    def slow(source: AdapterSource) -> LoadedAdapter:
        loads.append(source.digest)
        gate.wait(10)
        return load(source)

    residency = Residency(10 * SIZE, slow)
    assert all(residency.hold(source(weights, 1)) is None for _ in range(5))
    gate.set()
    settle(residency)
    assert loads == ["digest-1"]
    residency.close()


def test_what_is_held_is_never_evicted_and_the_oldest_idle_goes_first(weights: Path) -> None:
    residency = Residency(2 * SIZE, load)
    for number in (1, 2):
        residency.hold(source(weights, number))
        settle(residency)
        residency.hold(source(weights, number))
    assert residency.hold(source(weights, 3)) is None
    assert not residency.busy  # both are held: no room, and nothing was thrown out
    residency.release("digest-2")
    residency.hold(source(weights, 3))
    settle(residency)
    assert [resident.digest for resident in residency.resident()] == ["digest-1", "digest-3"]
    assert residency.evictions == {"acme/a2": 1}
    residency.close()


def test_unload_waits_for_the_last_holder_and_says_how_much(weights: Path) -> None:
    residency = Residency(2 * SIZE, load)
    residency.hold(source(weights, 1))
    settle(residency)
    residency.hold(source(weights, 1))
    assert residency.unload("digest-1") == SIZE
    assert residency.bytes == SIZE
    residency.release("digest-1")
    assert residency.bytes == 0
    assert residency.unload("digest-1") == 0
    residency.close()


def test_a_failed_load_is_told_once_and_tried_anew(weights: Path) -> None:
    answers = [ArtifactRefused("broken"), ValueError("worse")]

    def fail(source: AdapterSource) -> LoadedAdapter:
        raise answers.pop(0)

    residency = Residency(2 * SIZE, fail)
    for expected in (ArtifactRefused, Unavailable):
        assert residency.hold(source(weights, 1)) is None
        settle(residency)
        with pytest.raises(expected):
            residency.hold(source(weights, 1))
    assert residency.bytes == 0
    assert residency.load_failures == {"acme/a1": 2}
    residency.close()


def test_an_adapter_larger_than_the_budget_is_refused_with_both_figures(weights: Path) -> None:
    residency = Residency(SIZE - 1, load)
    with pytest.raises(Unavailable, match="400 bytes and the adapter budget is 399"):
        residency.hold(source(weights, 1))
    residency.close()


@settings(max_examples=60, deadline=None)
@given(
    budget=st.integers(1, 4),
    moves=st.lists(st.tuples(st.sampled_from(["hold", "release", "unload"]), st.integers(0, 5)), max_size=40),
)
def test_budget_and_holders_are_respected_whatever_happens(
    weights: Path, budget: int, moves: list[tuple[str, int]]
) -> None:
    residency = Residency(budget * SIZE, load)
    held: list[str] = []
    for move, number in moves:
        one = source(weights, number)
        if move == "hold" and residency.hold(one) is not None:
            held.append(one.digest)
        elif move == "release" and held:
            residency.release(held.pop(number % len(held)))
        elif move == "unload":
            residency.unload(one.digest)
        assert residency.bytes <= budget * SIZE
        settle(residency)
        assert residency.bytes <= budget * SIZE
        assert set(held) <= {resident.digest for resident in residency.resident()}
    residency.close()
