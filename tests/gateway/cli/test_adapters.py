"""`tunery adapters` and the frame around it, as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import msgspec
import pytest

from tests.forked_process import run_tunery
from tests.hub_server import HubServer
from tests.registry.artifacts import make_adapter, make_base
from tunery.plugins.training.report import Report
from tunery.registry import NewVersion
from tunery.registry.home import Home
from tunery.registry.registry import Registry

HEAVY = {"torch", "transformers", "peft", "alembic", "litestar", "huggingface_hub"}


def tunery(home: Home, *arguments: str, forked: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TUNERY_HOME": str(home.root), "TUNERY_ACTOR": "tester"}
    return run_tunery(*arguments, environment=environment, forked=forked)


@pytest.fixture
def filled(home: Home, registry: Registry, tmp_path: Path) -> Home:
    base = registry.add_base(make_base(tmp_path / "base"))
    for seed in range(3):
        folder = make_adapter(tmp_path / str(seed), seed=seed)
        metrics = {"base_loss": 2.0, "eval_loss": 1.0}
        registry.publish(
            NewVersion(
                adapter="acme/support",
                folder=folder,
                base=base,
                method="lora",
                manifest={"seed": seed},
                metrics=metrics,
                actor="t",
            )
        )
    return home


@pytest.mark.slow
def test_help_and_listing_import_nothing_heavy(filled: Home) -> None:
    code = "import sys; from tunery.gateway.cli import main\ntry:\n main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += f"print(sorted({HEAVY!r} & set(sys.modules)))"
    for arguments in (
        ["--help"],
        ["adapters", "list"],
        ["adapters", "show", "acme/support"],
        ["plugins"],
        ["bases", "list"],
    ):
        environment = {**os.environ, "TUNERY_HOME": str(filled.root)}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=600
        )
        assert done.stdout.splitlines()[-1] == "[]", (arguments, done.stdout, done.stderr)


@pytest.mark.slow
def test_listing_and_showing(filled: Home) -> None:
    listed = json.loads(tunery(filled, "adapters", "list", "--json").stdout)
    assert [(version["adapter"], version["number"]) for version in listed] == [("acme/support", 3)]
    table = tunery(filled, "adapters", "list", "acme/support").stdout
    assert table.splitlines()[1].startswith("acme/support@1\t-\tlora\ttiny\t")
    assert "2.000 → 1.000" in table
    assert json.loads(tunery(filled, "adapters", "show", "acme/support@2", "--json").stdout)["manifest"] == {"seed": 1}
    assert "acme/support@2" in tunery(filled, "adapters", "show", "acme/support@2").stdout


@pytest.mark.slow
def test_showing_a_report(filled: Home, registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    report = Report(
        adapter="acme/support", base="tiny", method="lora", chosen=8, why="the last step", rows=9, looked_at=9
    )
    (folder / "report.json").write_bytes(msgspec.json.encode(report))
    (folder / "report.md").write_text("# Report\n\nnot \x1b[31mred\n")
    (folder / "samples.md").write_text("# Samples\n")
    registry.publish(NewVersion(adapter="acme/support", folder=make_adapter(tmp_path / "9", seed=9), base=registry.base("tiny"), method="lora", manifest={"origin": {"hub": "x/y"}}, metrics={}, actor="t", report=folder))  # fmt: skip
    shown = tunery(filled, "adapters", "show", "acme/support@4").stdout
    assert "chosen: the last step\n" in shown
    assert "publisher's claim" in shown
    whole = tunery(filled, "adapters", "show", "acme/support@4", "--report").stdout
    assert "# Report\n\nnot [31mred\n\n# Samples\n" in whole
    assert json.loads(tunery(filled, "adapters", "show", "acme/support@4", "--json").stdout)["report"]["chosen"] == 8
    none = tunery(filled, "adapters", "show", "acme/support@1", "--report")
    assert (none.returncode, "has no report" in none.stderr) == (3, True)
    assert json.loads(tunery(filled, "adapters", "show", "acme/support@1", "--json").stdout)["report"] is None


@pytest.mark.slow
def test_moving_and_rolling_back(filled: Home) -> None:
    assert tunery(filled, "adapters", "alias", "acme/support", "production", "1").returncode == 0
    moved = tunery(
        filled, "adapters", "alias", "acme/support", "production", "2", "--expect", "1", "--reason", "better"
    )
    assert moved.stdout == "acme/support@production: 1 → 2\n"
    refused = tunery(filled, "adapters", "alias", "acme/support", "production", "3", "--expect", "1")
    assert (refused.returncode, "points to 2, not to 1" in refused.stderr) == (4, True)
    assert tunery(filled, "adapters", "rollback", "acme/support").stdout == "acme/support@production: 2 → 1\n"
    history = json.loads(tunery(filled, "adapters", "history", "acme/support", "--json").stdout)
    assert [(m["before"], m["after"], m["actor"], m["reason"]) for m in history] == [
        (None, 1, "user:tester", ""),
        (1, 2, "user:tester", "better"),
        (2, 1, "user:tester", "rollback"),
    ]


@pytest.mark.slow
def test_removing_verifying_and_collecting(filled: Home) -> None:
    assert tunery(filled, "adapters", "rm", "acme/support").returncode == 2
    assert tunery(filled, "adapters", "rm", "acme/support@2").stdout == "removed acme/support@2\n"
    collected = json.loads(tunery(filled, "adapters", "gc", "--older-than", "-1", "--json").stdout)
    assert collected["blobs"] == 1
    assert tunery(filled, "adapters", "verify").returncode == 0
    blob = next(path for path in filled.blobs.glob("??/*"))
    blob.write_bytes(b"damaged")
    assert tunery(filled, "adapters", "verify").returncode == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["adapters", "show", "acme/suport"], 3, "did you mean 'acme/support'?"),
        (["adapters", "show", "Not A Name"], 2, "tenant/name"),
        (["adapters", "alias", "acme/support", "production", "9"], 3, "no version 9"),
        (["adapterz"], 2, "did you mean 'adapters'"),
        (["plugins", "--trainer", "lorra"], 2, "unknown trainer 'lorra'"),
        (["bases", "add", "no-such-thing"], 2, "unknown base 'no-such-thing'"),
        (["adapters", "import", "/nowhere", "a/b", "--base", "tiny"], 3, "no folder"),
    ],
)
def test_mistakes_end_with_one_line_and_their_code(filled: Home, arguments: list[str], code: int, message: str) -> None:
    done = tunery(filled, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_to_the_hub_and_back(filled: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # huggingface_hub reads its variables when it is imported.
    hub_tunery = partial(tunery, filled, forked=False)
    with HubServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        done = hub_tunery("adapters", "publish", "acme/support@2", "--repo", "acme/lora", "--json")
        published = json.loads(done.stdout)
        assert hub.repositories["acme/lora"].tags == {published["tag"]: published["commit"]}
        source = f"acme/lora@{published['tag']}"
        pulled = json.loads(hub_tunery("adapters", "pull", source, "new/one", "--base", "tiny", "--json").stdout)
        hub.fail_commits = 403
        refused = hub_tunery("adapters", "publish", "acme/support@3", "--repo", "acme/lora")
        missing = hub_tunery("adapters", "pull", "acme/none", "new/one", "--base", "tiny")
    gone = hub_tunery("adapters", "pull", "acme/lora", "new/one", "--base", "tiny")
    assert (pulled["adapter"], pulled["number"], pulled["manifest"]["origin"]["commit"]) == (
        "new/one",
        1,
        published["commit"],
    )
    assert (refused.returncode, "HF_TOKEN" in refused.stderr) == (2, True)
    assert (missing.returncode, "is not on" in missing.stderr) == (3, True)
    assert (gone.returncode, "cannot be reached" in gone.stderr) == (6, True)


def test_importing_what_names_another_base_needs_a_word(filled: Home, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "theirs", tunery_base_digest="f" * 64)
    command = ["adapters", "import", str(folder), "new/one", "--base", "tiny"]
    refused = tunery(filled, *command)
    assert (refused.returncode, "--trust-base" in refused.stderr) == (5, True)
    assert tunery(filled, *command, "--trust-base").stdout.startswith("new/one@1  ")


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(filled: Home) -> None:
    environment = {**os.environ, "TUNERY_HOME": str(filled.root)}
    done = subprocess.run(
        f"{sys.executable} -m tunery.gateway.cli adapters show acme/support | true",
        shell=True,
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert "Traceback" not in done.stderr


def test_warnings_of_an_import_are_printed_and_shown(filled: Home, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "foreign", seed=11)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    taken = tunery(filled, "adapters", "import", str(folder), "acme/foreign", "--base", "tiny")
    assert taken.returncode == 0
    assert taken.stdout.startswith("acme/foreign@1  ")
    assert "warning: it comes with a chat template" in taken.stderr
    assert "warning: it comes with a chat template" in tunery(filled, "adapters", "show", "acme/foreign").stdout
