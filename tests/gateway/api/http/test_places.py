"""Requests in flight, counted in one process and over several."""

from __future__ import annotations

import math
import multiprocessing
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery.gateway.api.http.places import LocalPlaces, Places, SharedPlaces

TENANTS = ["acme", "globex", "initech", ""]
CHANGES = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(TENANTS), st.integers(1, 5)), max_size=30)


def shared(folder: Path, workers: int = 3) -> list[SharedPlaces]:
    return [SharedPlaces(folder / "places", worker=worker, workers=workers) for worker in range(workers)]


@settings(deadline=None, max_examples=30)
@given(changes=CHANGES)
def test_all_processes_see_the_same(
    changes: list[tuple[int, str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    places = shared(tmp_path_factory.mktemp("places"))
    expected: Counter[str] = Counter()
    for worker, tenant, count in changes:
        places[worker].change(count, tenant)
        expected[tenant] += count
    for each in places:
        assert each.count == expected.total()
        assert [each.of(tenant) for tenant in TENANTS] == [expected[tenant] for tenant in TENANTS]
    for worker, tenant, count in changes:
        places[worker].change(-count, tenant)
    assert places[0].count == 0
    for each in places:
        each.close()


@pytest.mark.parametrize("kind", ["local", "shared"])
def test_whether_a_tenant_is_alone(kind: str, tmp_path: Path) -> None:
    now = [100.0]
    places: Places = (
        LocalPlaces(lambda: now[0])
        if kind == "local"
        else SharedPlaces(tmp_path / "places", worker=0, workers=1, clock=lambda: now[0])
    )
    assert places.since_another("acme") == math.inf
    now[0] += 5
    assert places.since_another("acme") == math.inf
    assert places.since_another("globex") == 0
    now[0] += 7
    assert places.since_another("globex") == 7
    assert places.since_another("acme") == 0
    now[0] += 1
    assert places.since_another("initech") == 1


def test_a_tenant_of_another_process_counts_too(tmp_path: Path) -> None:
    now = [100.0]
    first, second = (SharedPlaces(tmp_path / "places", worker=at, workers=2, clock=lambda: now[0]) for at in range(2))
    first.since_another("acme")
    now[0] += 3
    assert second.since_another("acme") == math.inf
    assert second.since_another("globex") == 0
    now[0] += 2
    assert first.since_another("acme") == 2
    assert second.since_another("globex") == 0


def test_what_a_killed_process_had_is_free_when_the_next_starts(tmp_path: Path) -> None:
    first, second = shared(tmp_path, workers=2)
    first.change(5, "acme")
    process = multiprocessing.get_context("fork").Process(target=second.change, args=(7, "acme"))
    process.start()
    process.join()
    assert first.of("acme") == first.count == 12
    again = SharedPlaces(tmp_path / "places", worker=1, workers=2)
    assert again.of("acme") == 12
    again.clear()
    assert first.of("acme") == first.count == 5
