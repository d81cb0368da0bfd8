"""A residency whose loads run when a test says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.engine.adapters.residency_harness import MakeWorld, ResidencyHarness


@pytest.fixture
def world(tmp_path: Path) -> MakeWorld:
    def make(budget: int, *, ram: int = 0) -> ResidencyHarness:
        return ResidencyHarness(tmp_path, budget, ram=ram)

    return make
