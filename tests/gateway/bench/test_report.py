"""Bars are judged from rows and other systems' lines; wrong lines are named; the picture is a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunery.gateway.bench.report import (
    Peer,
    as_json,
    bars_table,
    draw,
    judge,
    read_bars,
    read_peers,
    read_rows,
    rows_table,
)
from tunery.gateway.bench.suite import Row
from tunery.registry.errors import InvalidInput

SPEED = {"tok_s": 600.0, "prefill_tok_s": 2500.0, "decode_tok_s": 900.0, "ttft_ms": 500.0}


def rows() -> list[Row]:
    return [
        Row(name="mixed_decode_nf4", title="mixed", value=900.0, unit="tok/s", detail=SPEED),
        Row(name="alone_decode_nf4", title="alone", value=240.0, unit="tok/s", detail=SPEED | {"tok_s": 230.0}),
        Row(name="mixed_over_base_nf4", title="over base", value=0.72, unit="×"),
        Row(name="gap", title="gap", value=2.5, unit="×"),
        Row(name="start", title="start", value=3.1, unit="s"),
        Row(name="sweep_0", title="0", value=1500.0, unit="tok/s", detail=SPEED),
        Row(name="sweep_32", title="32", value=900.0, unit="tok/s", detail=SPEED),
    ]


def peer(system: str, batch: int, distinct: int, tok_s: float, prefill: float = 100.0) -> Peer:
    return Peer(system=system, workload={"batch": batch, "distinct": distinct}, tok_s=tok_s, prefill_tok_s=prefill)


PEERS = [
    peer("vllm-cpu", 32, 32, 120.0, 350.0),
    peer("peft", 32, 32, 48.0),
    peer("llama.cpp", 1, 0, 115.0),
    peer("vllm-cpu", 32, 0, 640.0),
]


def test_bars_compare_with_the_best_of_the_same_workload() -> None:
    bars = {bar.title: bar for bar in judge(rows(), PEERS)}
    mixed = bars["mixed (prompts counted)"]
    assert (mixed.value, mixed.met, mixed.against) == (5.0, "yes", "600 over vllm-cpu's 120 tok/s")
    assert bars["mixed (prefill)"].value == round(2500 / 350, 2)
    assert (bars["alone (prompts counted)"].value, bars["alone (prompts counted)"].met) == (2.0, "goal")


def test_a_bar_is_missed_met_or_at_its_goal_in_its_own_direction() -> None:
    met = {bar.title: bar.met for bar in judge(rows(), [])}
    assert met == {"over base": "yes", "gap": "NO", "start": "goal"}


def test_without_other_systems_nothing_is_compared_with_them() -> None:
    assert all(not bar.against for bar in judge(rows(), []))
    assert "| gap | 2.5 × | ≤ 2 | ≤ 1.2 | NO |" in bars_table(judge(rows(), []))


def test_peers_are_read_line_by_line_and_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "peers.jsonl"
    good = {"system": "vllm", "workload": {"batch": 1}, "tok_s": 1.0, "prefill_tok_s": 2.0, "more": True}
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(good) + "\n")
    assert [one.system for one in read_peers(path)] == ["vllm", "vllm"]
    path.write_text(json.dumps(good) + "\n{}\n")
    with pytest.raises(InvalidInput, match=r"peers\.jsonl:2 "):
        read_peers(path)


@pytest.mark.slow
def test_the_picture_and_the_json(tmp_path: Path) -> None:
    draw(rows(), PEERS, tmp_path / "new" / "serve.png")
    assert (tmp_path / "new" / "serve.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(as_json(rows(), judge(rows(), PEERS), {"cores": 2}))
    assert report["machine"] == {"cores": 2}
    assert [row["name"] for row in report["rows"]] == [row.name for row in rows()]
    assert {bar["met"] for bar in report["bars"]} == {"goal", "yes", "NO"}
    assert (read_rows(report), read_bars(report)) == (rows(), judge(rows(), PEERS))
    assert "| gap | 2.5 × |" in rows_table(read_rows(report))
