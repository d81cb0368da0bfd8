"""`tunery eval` as a process, with an engine of its own on the tiny base."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gateway.cli.test_adapters import tunery
from tests.gateway.serve_process import publish, random_loras
from tunery.plugins.testing import write_rows
from tunery.registry import Base
from tunery.registry.home import Home
from tunery.registry.registry import Registry

pytestmark = pytest.mark.slow


@pytest.fixture
def bot(registry: Registry, tiny_base: Base, tiny_base_folder: Path, tmp_path: Path) -> str:
    """A version whose answers are noise."""
    publish(registry, tiny_base, random_loras(tmp_path, tiny_base_folder, 1), name=lambda _: "acme/bot")
    return "acme/bot"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve as small as it gets."""
    for name, value in {"QUANT": "none", "DTYPE": "float32", "MAX_BATCH": "4"}.items():
        monkeypatch.setenv(f"TUNERY_SERVE_{name}", value)


def test_a_version_against_its_base(home: Home, registry: Registry, bot: str, tmp_path: Path, small: None) -> None:
    rows = write_rows(tmp_path / "held.jsonl", 6)
    out = tmp_path / "rows.out"
    graders = ("--grader", "similarity:fuzzy_match>=0.0", "--grader", "exact")
    words = ("--data", str(rows), *graders, "--max-tokens", "4", "--out", str(out))
    done = tunery(home, "eval", "run", f"{bot}@1", "--against", "tiny", *words, forked=False)
    assert done.returncode == 0, done.stderr
    assert "acme/bot@1\tfuzzy_match\t0." in done.stdout
    assert "\t6/6\t0" in done.stdout
    assert "acme/bot@1: passes every grader 0.0 % (0.0 to 39.0 %) of 6 rows" in done.stdout
    assert "acme/bot@1 less tiny, paired by row:" in done.stdout
    assert "exact\t+0.000 (+0.000 to +0.000)\t6\t0\t0\t0\t6\t1" in done.stdout
    assert "6/6 rows" in done.stderr
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(result["answers"]) for result in results] == [2] * 6
    ((run,), _) = registry.evals.runs(eval_id=None, limit=10)
    assert run.id in done.stdout
    assert (run.state, run.data_name, run.row_count) == ("completed", "held.jsonl", 6)
    (listed,) = json.loads(tunery(home, "eval", "list", "--json").stdout)
    assert listed["id"] == run.id
    assert "acme/bot@1 against tiny on held.jsonl" in tunery(home, "eval", "show", run.id).stdout
    shown = json.loads(tunery(home, "adapters", "show", "acme/bot", "--json").stdout)
    assert [each["run"] for each in shown["evals"]] == [run.id]
    assert "+0.000 against tiny" in tunery(home, "adapters", "show", "acme/bot").stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["acme/none"], 3, "acme/none"),
        (["acme/bot", "--against", "acme/other"], 3, "acme/other"),
        (["acme/bot", "--grader", "exakt"], 3, "no short form; those are exact"),
        (["acme/bot", "--grader", "similarity:meteor>=0.5"], 2, "meteor is not supported"),
        (["acme/bot", "--data", "/no/such/file"], 3, "/no/such/file"),
        (["acme/bot", "--server", "http://127.0.0.1:9"], 6, "does not answer"),
        (["acme/bot", "--server", "http://127.0.0.1:9", "--base", "tiny"], 2, "--base goes without --server"),
    ],
)
def test_mistakes_end_before_anything_is_recorded(
    home: Home, registry: Registry, bot: str, tmp_path: Path, small: None, words: list[str], code: int, message: str
) -> None:
    rows = write_rows(tmp_path / "held.jsonl", 2)
    given = ["--grader", "exact"] if "--grader" not in words else []
    data = ["--data", str(rows)] if "--data" not in words else []
    done = tunery(home, "eval", "run", *words, *given, *data)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr
    assert registry.evals.runs(eval_id=None, limit=10) == ([], False)
    assert registry.evals.page(tenant=None, after=None, limit=10, ascending=True) == ([], False)


def test_a_row_without_a_field_is_named(home: Home, bot: str, tmp_path: Path, small: None) -> None:
    rows = tmp_path / "items.jsonl"
    rows.write_text('{"item": {"q": "a", "reference": "b"}}\n{"item": {"reference": "b"}}\n')
    prompt = tmp_path / "prompt.json"
    prompt.write_text('[{"role": "user", "content": "{{item.q}}"}]')
    done = tunery(home, "eval", "run", bot, "--data", str(rows), "--grader", "exact", "--prompt", str(prompt))
    assert done.returncode == 2
    assert "items.jsonl:2: {{item.q}}: there is no item.q" in done.stderr


def test_answers_longer_than_the_context_are_refused_before_anything_is_recorded(
    home: Home, registry: Registry, bot: str, tmp_path: Path, small: None
) -> None:
    rows = write_rows(tmp_path / "held.jsonl", 2)
    words = ("--data", str(rows), "--grader", "exact", "--max-tokens", "1000000000")
    done = tunery(home, "eval", "run", bot, *words, forked=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "max_completion_tokens is 1000000000, and prompt and answer have " in done.stderr
    assert registry.evals.page(tenant=None, after=None, limit=10, ascending=True) == ([], False)


def test_an_interrupted_command_ends_its_run(
    home: Home, registry: Registry, bot: str, tmp_path: Path, small: None
) -> None:
    rows = write_rows(tmp_path / "held.jsonl", 2000)
    words = ("eval", "run", bot, "--data", str(rows), "--grader", "exact", "--max-tokens", "64")
    command = [sys.executable, "-m", "tunery.gateway.cli", *words]
    environment = os.environ | {"TUNERY_HOME": str(home.root)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        deadline = time.monotonic() + 200
        while not (runs := registry.evals.runs(eval_id=None, limit=1)[0]) or not registry.evals.positions(runs[0].id):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert registry.evals.run(runs[0].id).state == "canceled"


def test_judges_are_held_to_labels_and_numbers(
    home: Home, registry: Registry, bot: str, tmp_path: Path, small: None
) -> None:
    """The tiny base says anything at all, and as a judge nothing but a label or a number in range."""
    rows = write_rows(tmp_path / "held.jsonl", 4)
    asked = {"model": "tiny", "input": [{"role": "user", "content": "{{item.reference}} or {{sample.output_text}}?"}]}
    label = asked | {"type": "label_model", "name": "label", "labels": ["same", "other"], "passing_labels": ["same"]}
    score = asked | {"type": "score_model", "name": "score", "range": [1, 5]}
    (tmp_path / "graders.json").write_text(json.dumps([label, score]))
    words = ("--data", str(rows), "--grader", str(tmp_path / "graders.json"), "--max-tokens", "4", "--json")
    done = tunery(home, "eval", "run", bot, *words, forked=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    labelled, scored = shown["summary"]["models"][0]["graders"]
    assert (labelled["rows"], labelled["errored"]) == (4, 0)
    assert scored["rows"] + scored["errored"] == 4
    assert shown["summary"]["judges"]["tiny"]["requests"] == 8
    for item in registry.evals.all_items(shown["run"]):
        of_label, of_score = item.data["answers"][0]["scores"]
        assert of_label["sample"]["label"] in ("same", "other")
        # A number that is still going on when its tokens are used up is no number.
        assert of_score["error"] is not None or 1 <= of_score["sample"]["value"] <= 5
