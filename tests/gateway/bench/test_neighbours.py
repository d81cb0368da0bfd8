"""What others cost is measured on real processes: alone and beside busy ones, and a stream beside huge prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery.gateway.bench import job_beside, neighbours, serving
from tunery.gateway.bench.report import judge
from tunery.plugins.testing import write_rows
from tunery.registry import Base
from tunery.registry.errors import Unavailable
from tunery.registry.home import Home


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_every_figure_is_measured_and_judged(
    home: Home, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_HOME", str(home.root))
    for module, name, value in (
        (neighbours, "ROUNDS", 1),
        (neighbours, "STEPS", 2),
        (neighbours, "PROMPT_BYTES", 10**6),
        (serving, "STREAM", 40),
        (job_beside, "ROUNDS", 1),
        (job_beside, "SECONDS", 1.0),
    ):
        monkeypatch.setattr(module, name, value)
    messages: list[str] = []
    rows = neighbours.measure_neighbours(
        tiny_base, write_rows(tmp_path / "rows.jsonl", 20), busy=1, say=messages.append
    )
    assert [row.name for row in rows] == [
        "decode_beside_busy", "training_beside_busy", "gap_beside_huge_prompts", "gap_beside_endless_huge_prompts",
        "gap_beside_job", "job_beside_streams",
    ]  # fmt: skip
    assert all(row.value > 0 for row in rows)
    assert rows[3].detail["prompts"] > 0
    assert len(judge(rows, [])) == 5
    assert any(line.startswith("decode: ") for line in messages)


def test_a_command_that_fails_is_reported_with_its_output() -> None:
    with pytest.raises(Unavailable, match="such command"):
        neighbours._figure(("nothing", "at all"), "decode_tok_s")
