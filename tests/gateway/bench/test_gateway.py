"""The gateway measured by itself, for moments only: what is measured is real, and nothing is asserted of how fast it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery.gateway.bench import gateway
from tunery.gateway.bench.report import judge, rows_table
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.registry.registry import Registry

pytestmark = pytest.mark.slow


def test_the_gateway_is_measured_in_front_of_the_fake_engine(
    registry: Registry, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RATE": 20, "SECONDS": 0.5, "CONNECTIONS": 4, "STREAM_TOKENS": 20}.items():
        monkeypatch.setattr(gateway, name, value)
    base = resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins())
    said: list[str] = []
    rows = gateway.measure_gateway(base, said.append)
    assert [row.name for row in rows] == ["gateway_p50", "gateway_p99", "gateway_requests", "gateway_tokens"]
    assert all(row.value > 0 for row in rows)
    assert rows[0].value <= rows[1].value
    assert len(said) == len(rows)
    assert {bar.title for bar in judge(rows, [])} == {row.title for row in rows[:3]}
    assert "req/s" in rows_table(rows)
