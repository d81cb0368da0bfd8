"""The suite's rows on a tiny base and few requests: every row comes, and measures what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery.gateway.bench import suite
from tunery.gateway.bench.driver import Driver
from tunery.gateway.bench.settings import Workload
from tunery.gateway.bench.suite import Row, Suite
from tunery.gateway.bench.workload import bench_serve, random_adapter
from tunery.gateway.engine.config import EngineConfig
from tunery.registry.errors import Unavailable


@pytest.fixture
def config(tiny_base_folder: Path) -> EngineConfig:
    return EngineConfig(base_folder=str(tiny_base_folder), base_name="tiny", base_digest="t" * 64, quant="none")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite of seconds."""
    for name, value in {
        "REGISTERED": 12,
        "RESIDENT": 3,
        "ZIPF_REQUESTS": 24,
        "COLD": 3,
        "RUNS": 1,
        "PAIRS": 1,
        "NEW": 4,
    }.items():
        monkeypatch.setattr(suite, name, value)


@pytest.mark.slow
def test_every_row_but_the_processes(small: None, config: EngineConfig, tmp_path: Path) -> None:
    messages: list[str] = []
    made = Suite(config, tmp_path, messages.append)
    rows: list[Row] = [*made._sweep(), made._registered(), made._zipf(), made._cold_first_token(), made._gaps()]
    named = {row.name: row for row in rows}
    assert [name for name in named if name.startswith("sweep_")] == [f"sweep_{n}" for n in (0, 1, 2, 4, 8, 16, 32)]
    assert all(row.value > 0 for row in rows if row.name != "cold_first_token")
    assert named["zipf"].detail["loads_3"] > 0
    assert named["zipf"].detail["loads_12"] == 0
    assert set(named["gap"].detail) == {"steady_ms", "loading_ms"}


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(small: None, config: EngineConfig, tmp_path: Path) -> None:
    row = Suite(config, tmp_path, lambda text: None)._memory()
    assert row.detail["grown"] > 0
    assert row.detail["adapters"] > row.detail["base"] / 100


def test_one_workload_counts_every_token(config: EngineConfig) -> None:
    result = bench_serve(config, Workload(adapters=2, rank=4, batch=3, prompt=5, new=4))
    assert result.tok_s > 0
    assert result.decode_tok_s > 0
    assert result.adapter_bytes > 0


def test_a_request_that_fails_ends_the_benchmark(config: EngineConfig, tmp_path: Path) -> None:
    with Driver(config) as driver:
        source = random_adapter(driver.core.model.shape, tmp_path / "a", rank=2, seed=0)
        (tmp_path / "a" / "adapter_config.json").unlink()
        driver.submit("r", (1, 2), 2, source)
        with pytest.raises(Unavailable, match="the benchmark's own request failed"):
            driver.finish()
