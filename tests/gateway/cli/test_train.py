"""`tunery train` and `tunery bench` as processes: a version from a file, and every mistake reported
before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gateway.cli.test_adapters import tunery
from tunery.plugins.testing import write_rows
from tunery.registry import Base
from tunery.registry.home import Home
from tunery.registry.registry import Registry

QUICK = ("--set", "precision=float32", "--set", "max_steps=2", "--set", "r=4", "--force")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 20)


@pytest.mark.slow
def test_a_file_becomes_a_version(
    home: Home, registry: Registry, tiny_base: Base, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows as a JSON document, under a locale that has only ASCII."""
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    rows = rows.rename(rows.with_suffix(".json"))
    rows.write_text(json.dumps([json.loads(line) for line in rows.read_text().splitlines()], indent=1))
    command = ("train", "--base", "tiny", "--data", str(rows), "--name", "acme/support", *QUICK)
    done = tunery(home, *command, "--alias", "production", forked=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("acme/support@1  ")
    assert "held-out loss" in done.stdout
    assert "\\u2192" in done.stdout
    assert "report:\n  held out: loss " in done.stderr
    version = registry.resolve("acme/support@production")
    assert version.manifest["parameters"]["r"] == 4
    monkeypatch.undo()
    more = tunery(home, *command, "--from", "acme/support", "--json")
    assert json.loads(more.stdout)["number"] == 2
    assert registry.resolve("acme/support").number == 1


@pytest.mark.slow
def test_a_failed_gate_ends_with_nine_and_is_forced_on_record(
    home: Home, registry: Registry, tiny_base: Base, rows: Path
) -> None:
    careful = [word for word in QUICK if word != "--force"]
    failed = tunery(home, "train", "--base", "tiny", "--data", str(rows), "--name", "acme/support", *careful)
    assert (failed.returncode, failed.stdout) == (9, ""), failed.stderr
    assert "gate finite passed: all 28 tensors are finite" in failed.stderr
    assert "gate stops FAILED (never_stops): 0 of " in failed.stderr
    (job,) = registry.jobs()
    assert f"tunery train --resume {job.id} --force" in failed.stderr
    assert (job.state, registry.versions()) == ("failed", [])
    done = tunery(home, "train", "--resume", job.id, "--force")
    assert done.returncode == 0, done.stderr
    shown = tunery(home, "adapters", "show", "acme/support@1").stdout
    assert "never_stops" in shown
    assert "published anyway by " in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--method", "lorra"], 2, "unknown trainer 'lorra': did you mean 'lora'"),
        (["--set", "learning_rat=1"], 2, "unknown parameter 'learning_rat': did you mean 'learning_rate'"),
        (["--set", "r=zero"], 2, "r='zero': r is a whole number, at least 1"),
        (["--set", "r"], 2, "NAME=VALUE"),
        (["--base", "tinny"], 2, "unknown base 'tinny'"),
        (["--name", "Not A Name"], 2, "tenant/name"),
        (["--from", "acme/other"], 3, "acme/other"),
        (["--data", "/no/such/file"], 2, "/no/such/file"),
        (["--resume", "job-x"], 3, "job-x"),
        (["--device", "tpu"], 2, "device 'tpu' is not one that Tunery runs on; use cpu, cuda"),
        (["--device", "cuda:99"], 2, "device 'cuda:99': "),
        (["--allow", "duplicat"], 2, "unknown rule 'duplicat': did you mean 'duplicate'"),
    ],
)
def test_mistakes_are_reported_and_nothing_is_trained(
    home: Home, registry: Registry, tiny_base: Base, rows: Path, arguments: list[str], code: int, message: str
) -> None:
    given = {"--base": "tiny", "--data": str(rows), "--name": "acme/support"}
    given = {name: value for name, value in given.items() if name not in arguments}
    done = tunery(home, "train", *[word for pair in given.items() for word in pair], *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert (registry.versions(), registry.jobs()) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["serve", "--port", "0"], ["bench", "serve"], ["bench", "train", "--data", "rows.jsonl"]]
)
def test_a_device_that_is_none_ends_every_command_with_two(
    home: Home, registry: Registry, tiny_base: Base, rows: Path, command: list[str]
) -> None:
    words = [str(rows) if word == "rows.jsonl" else word for word in command]
    done = tunery(home, *words, "--base", "tiny", "--device", "tpu")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: device 'tpu' is not one that Tunery runs on")


@pytest.mark.slow
def test_a_job_goes_on_as_it_began_and_what_differs_is_refused_by_name(
    home: Home, registry: Registry, tiny_base: Base, rows: Path, tmp_path: Path
) -> None:
    careful = [word for word in QUICK if word != "--force"]
    start = ("--base", "tiny", "--data", str(rows), "--name", "acme/support", "--alias", "production", *careful)
    assert tunery(home, "train", *start, "--threads", "1").returncode == 9
    (job,) = registry.jobs()
    assert registry.home.jobs.joinpath(job.id, "manifest.json").read_text().count('"threads": 1') == 1
    other = write_rows(tmp_path / "other.jsonl", 24)
    asked = ("--method", "full", "--data", str(other), "--name", "acme/else", "--alias", "canary", "--set", "r=8", "--set", "seed=3",
             "--allow", "pii")  # fmt: skip
    refused = tunery(home, "train", "--resume", job.id, *asked, "--force")
    assert (refused.returncode, refused.stdout) == (2, "")
    for line in (
        "--method: the job has lora, full was asked for",
        "--name: the job has acme/support, acme/else was asked for",
        "--alias: the job has production, canary was asked for",
        f"--data: the job has {rows}, {other} was asked for",
        "--allow: the job has none, pii was asked for",
        "--set r: the job has 4, 8 was asked for",
        "--set seed: the job has 0, 3 was asked for",
    ):
        assert line in refused.stderr.splitlines()
    wrong = tunery(home, "train", "--resume", job.id, "--set", "rr=3")
    assert "unknown parameter 'rr'" in wrong.stderr
    assert (registry.versions(), [each.state for each in registry.jobs()]) == ([], ["failed"])
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(rows.read_bytes())
    same = ("--base", "tiny", "--data", str(copy), "--name", "acme/support", "--alias", "production", "--set", "r=4",
            "--set", "precision=float32", "--set", "epochs=auto", "--device", "cpu", "--method", "lora")  # fmt: skip
    done = tunery(home, "train", "--resume", job.id, *same, "--force")
    assert done.returncode == 0, done.stderr
    assert registry.resolve("acme/support@production").manifest["parameters"]["r"] == 4


def test_a_broken_file_ends_with_two_and_every_bad_line(
    home: Home, registry: Registry, tiny_base: Base, rows: Path
) -> None:
    with rows.open("a") as file:
        file.write('{oops\n{"messages": []}\n')
    done = tunery(home, "train", "--base", "tiny", "--data", str(rows), "--name", "acme/support")
    assert done.returncode == 2
    assert "rows.jsonl:21:" in done.stderr
    assert "rows.jsonl:22:" in done.stderr
    assert (registry.versions(), registry.jobs()) == ([], [])


@pytest.mark.slow
def test_errors_in_the_rows_stop_the_run_unless_allowed_and_warnings_are_reported(
    home: Home, registry: Registry, tiny_base: Base, rows: Path
) -> None:
    with rows.open("a") as file:
        file.write(
            '{"messages": [{"role": "user", "content": "me"}, {"role": "assistant", "content": "me@example.com"}]}\n'
            * 2
        )
    command = ("train", "--base", "tiny", "--data", str(rows), "--name", "acme/support", *QUICK)
    refused = tunery(home, *command)
    assert refused.returncode == 2
    assert "rows.jsonl:22: $: is the same as rows.jsonl:21" in refused.stderr
    assert "--allow duplicate" in refused.stderr
    assert (registry.versions(), registry.jobs()) == ([], [])
    done = tunery(home, *command, "--allow", "duplicate")
    assert done.returncode == 0, done.stderr
    assert "  duplicate (allowed): 1, first rows.jsonl:22 is the same as rows.jsonl:21; drop one of them" in done.stderr
    assert "  pii: 2, first rows.jsonl:21 holds a mail address: me@e" in done.stderr
    assert registry.resolve("acme/support").manifest["data_check"]["allowed"] == ["duplicate"]


@pytest.mark.slow
def test_the_benchmarks_print_one_json_object(home: Home, registry: Registry, tiny_base: Base, rows: Path) -> None:
    size = ("--adapters", "3", "--rank", "4", "--batch", "4", "--prompt", "8", "--new", "4")
    served = json.loads(tunery(home, "bench", "serve", "--base", "tiny", *size, "--quant", "none", "--json").stdout)
    assert served["workload"] == {"adapters": 3, "rank": 4, "batch": 4, "prompt": 8, "new": 4, "seed": 0}
    assert min(served["decode_tok_s"], served["prefill_tok_s"], served["ttft_ms"]) > 0
    trained = json.loads(
        tunery(home, "bench", "train", "--base", "tiny", "--data", str(rows), "--steps", "3", "--json").stdout
    )
    assert trained["steps"] == 3
    assert min(trained["useful_tok_s"], trained["peak_gb"]) > 0
    wrong = tunery(home, "bench", "serve", "--base", "tiny", "--quant", "nf5", "--json")
    assert (wrong.returncode, "nf4" in wrong.stderr) == (2, True)
