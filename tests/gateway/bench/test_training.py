"""The comparison runs real processes: ours, and a peer that is any command; what a peer prints wrongly is reported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.gateway.cli.test_adapters import tunery
from tunery.gateway.bench.training import TrainingWorkload, compare, table
from tunery.plugins.testing import write_rows
from tunery.registry import Base
from tunery.registry.errors import InvalidInput, Unavailable
from tunery.registry.home import Home
from tunery.registry.registry import Registry

PEER = """
import json, sys
base, data, held_out, steps, batch = sys.argv[1:]
print("loading", {})
print(json.dumps({"system": "other", "useful_tok_s": 10.0, "peak_gb": 2.0, "eval_loss": 3.0,
                  "steps": int(steps), "batch": int(batch), "config": open(base + "/config.json").read()[:1]}))
"""


@pytest.mark.slow
def test_methods_and_a_peer_are_measured_in_one_run(
    home: Home, registry: Registry, tiny_base: Base, tmp_path: Path
) -> None:
    rows, held_out = write_rows(tmp_path / "rows.jsonl", 20), write_rows(tmp_path / "held.jsonl", 4, start=90)
    peer = tmp_path / "peer.py"
    peer.write_text(PEER)
    done = tunery(
        home, "bench", "train", "--base", "tiny", "--data", str(rows), "--held-out", str(held_out), "--steps", "2",
        "--method", "lora", "--method", "qlora", "--set", "batch_size=4", "--json",
        "--peer", f"{sys.executable} {peer} {{base}} {{data}} {{held_out}} {{steps}} {{batch}}",
    )  # fmt: skip
    figures = json.loads(done.stdout)["figures"]
    assert [each["system"] for each in figures] == ["tunery lora", "tunery qlora", "other"]
    assert all(each["eval_loss"] > 0 for each in figures)
    assert [figures[0]["batch_size"], figures[2]["batch"], figures[2]["config"]] == [4, 4, "{"]
    lines = table(figures, peer=True).splitlines()
    assert len(lines) == 5
    assert f"{figures[0]['useful_tok_s'] / 10:.2f} ×" in lines[2]
    assert "| 1.00 × | 1.00 × | +0.00% |" in lines[4]


@pytest.mark.parametrize(
    ("peer", "error", "words"),
    [
        ("/nowhere/peer {base}", InvalidInput, "cannot be run"),
        ("peer {model}", InvalidInput, "'model'"),
        (f"{sys.executable} -c print(1)", Unavailable, "no figures"),
        (f"{sys.executable} -c 1/0", Unavailable, "ZeroDivisionError"),
    ],
)
def test_a_peer_that_cannot_be_measured_is_reported(peer: str, error: type[Exception], words: str) -> None:
    workload = TrainingWorkload(base="b", folder="f", data=Path("d"), held_out=None, steps=1, batch=1)
    with pytest.raises(error, match=words):
        compare(workload, (), peer, lambda text: None)


def test_without_a_peer_there_are_no_ratios() -> None:
    shown = table([{"system": "tunery lora", "useful_tok_s": 12.3, "peak_gb": 1.0}], peer=False)
    assert shown.splitlines()[-1] == "| tunery lora | 12 | 1.00 |  |"
