"""Evaluations by real servers and commands: one that is killed in the middle, and a trained version against its base."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.gateway.serve_process import TINY, ServeProcess, publish, random_loras, start_server
from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.plugins.testing import write_rows
from tunery.registry.home import Home
from tunery.registry.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

GRADER: Any = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference}}",
    "operation": "eq",
}


def tunery(home: Home, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TUNERY_HOME": str(home.root), "OMP_NUM_THREADS": "2"}
    if not load_kernels():
        environment["TUNERY_SERVE_QUANT"] = "none"
    command = [sys.executable, "-m", "tunery.gateway.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


def ended(server: ServeProcess, eval_id: str, run_id: str) -> Any:
    deadline = time.monotonic() + 600
    while (run := server.client.evals.runs.retrieve(run_id, eval_id=eval_id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline, run
        time.sleep(0.1)
    return run


def test_another_server_goes_on_where_a_killed_one_stopped(
    tmp_path: Path, short_tmp: Path, tiny_base_folder: Path
) -> None:
    home = Home(short_tmp / "home")
    with Registry.open(home) as registry:
        base = resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="tiny")
        publish(registry, base, random_loras(tmp_path, tiny_base_folder, 1), name=lambda _: "acme/bot")
    rows = write_rows(tmp_path / "held.jsonl", 200)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with start_server(tmp_path / "a", home, "tiny", *TINY) as first, Registry.open(home) as registry:
        file = first.client.files.create(file=rows, purpose="evals")
        made = first.client.evals.create(
            data_source_config={"type": "custom", "item_schema": {"type": "object"}}, testing_criteria=[GRADER]
        )
        source: Any = {
            "type": "completions",
            "model": "acme/bot",
            "source": {"type": "file_id", "id": file.id},
            "sampling_params": {"max_completion_tokens": 16},
        }
        run = first.client.evals.runs.create(made.id, data_source=source, extra_body={"tunery": {"against": "tiny"}})
        while not (before := registry.evals.items(run.id)[0]):
            time.sleep(0.01)
        first.process.kill()
        first.process.wait()
        before, _ = registry.evals.items(run.id)
        assert 0 < len(before) < 200
        with start_server(tmp_path / "b", home, "tiny", *TINY) as second:
            done = ended(second, made.id, run.id)
            after, _ = registry.evals.items(run.id)
            assert (done.status, done.result_counts.total) == ("completed", 200), done
            # Several rows are under way at once, so those that were stored need not be the first ones.
            stored = {item.position for item in before}
            assert [item for item in after if item.position in stored] == before
            assert [item.position for item in after] == list(range(200))
            (measured,) = registry.evals.measurements(registry.resolve("acme/bot").digest)
            assert (measured.run, measured.against) == (run.id, "tiny")
            _by_command(home, second, rows, tmp_path)


def _by_command(home: Home, server: ServeProcess, rows: Path, folder: Path) -> None:
    """`tunery eval run --server` says what the server measured."""
    words = ("acme/bot", "--data", str(rows), "--grader", "exact", "--max-tokens", "2", "--server", server.url)
    out = folder / "rows.out"
    done = tunery(home, "eval", "run", *words, "--against", "acme/bot@1", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["model"], shown["against"], shown["state"]) == ("acme/bot@1", "acme/bot@1", "completed")
    assert shown["summary"]["comparison"][0]["difference"] == 0.0
    assert len(out.read_text().splitlines()) == 200
    refused = tunery(home, "eval", "run", "acme/none", *words[1:])
    assert refused.returncode == 3
    assert "acme/none" in refused.stderr


@pytest.mark.soak
def test_a_trained_version_is_better_than_the_real_base(tmp_path: Path, base_folder: Path, base_cache: Home) -> None:
    home = Home(tmp_path / "home")
    with Registry.open(base_cache) as cache, Registry.open(home) as registry:
        registry.add_base(msgspec.structs.replace(cache.base("smollm2-135m"), path=str(base_folder)))
    train, held = write_rows(tmp_path / "rows.jsonl", 48), write_rows(tmp_path / "held.jsonl", 12, start=48)
    settings = ("learning_rate=0.002", "batch_size=8", "max_steps=18", "r=8", "eval_fraction=0")
    words = [word for setting in settings for word in ("--set", setting)]
    trained = tunery(
        home, "train", "--base", "smollm2-135m", "--data", str(train), "--name", "acme/items", "--force", *words
    )
    assert trained.returncode == 0, trained.stderr
    graders = ("--grader", "exact", "--grader", "similarity:rouge_1>=0.5")
    command = ("eval", "run", "acme/items", "--against", "smollm2-135m", "--data", str(held), "--max-tokens", "12")
    done = tunery(home, *command, *graders, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]
    similar = next(row for row in summary["comparison"] if row["name"] == "rouge_1")
    assert (similar["rows"], similar["low"] > 0.2) == (12, True), summary
    assert similar["only_second"] == 0
    shown = tunery(home, "adapters", "show", "acme/items").stdout
    line = next(line for line in shown.splitlines() if "rouge_1" in line)
    assert "against smollm2-135m" in line
    assert "held.jsonl" in line
    run_id = json.loads(done.stdout)["run"]
    assert f"{similar['difference']:+.3f}" in tunery(home, "eval", "show", run_id).stdout
    assert run_id in tunery(home, "eval", "list").stdout
