"""What others cost is measured on real processes: alone and beside busy ones, and a stream beside huge prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery.gateway.bench import neighbours
from tunery.gateway.bench.report import judge
from tunery.plugins.testing import write_rows
from tunery.registry import Base
from tunery.registry.errors import Unavailable
from tunery.registry.home import Home


@pytest.mark.slow
def test_every_figure_is_measured_and_judged(
    home: Home, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_HOME", str(home.root))
    for name, value in (("ROUNDS", 1), ("STEPS", 2), ("STREAM", 40), ("PROMPT_BYTES", 10**6)):
        monkeypatch.setattr(neighbours, name, value)
    messages: list[str] = []
    rows = neighbours.measure_neighbours("tiny", write_rows(tmp_path / "rows.jsonl", 20), busy=1, say=messages.append)
    assert [row.name for row in rows] == [
        "decode_beside_busy", "training_beside_busy", "gap_beside_huge_prompts", "gap_beside_endless_huge_prompts",
    ]  # fmt: skip
    assert all(row.value > 0 for row in rows)
    assert rows[3].detail["prompts"] > 0
    assert len(judge(rows, [])) == 3
    assert any(line.startswith("decode: ") for line in messages)


def test_a_command_that_fails_is_reported_with_its_output() -> None:
    with pytest.raises(Unavailable, match="such command"):
        neighbours._figure(("nothing", "at all"), "decode_tok_s")
