"""The tutorials' data is the same every time and their pages run, here on a tiny random base and for two steps."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tunery.plugins.data import CHAT
from tunery.plugins.data.read.dataset import read_rows

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "examples" / "tutorials"
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


def load(path: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"tutorial_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_customer_service_rows_are_distinct_and_keep_the_tone(tmp_path: Path) -> None:
    script = TUTORIALS / "customer_service" / "make_data.py"
    rows = load(script).rows(240)
    assert rows == load(script).rows(240)
    asked, answers = zip(*((row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows), strict=True)
    assert len(set(asked)) == 240
    for question, answer in zip(asked, answers, strict=True):
        name = re.match(r"Hi (\w+)!", answer)
        assert name is not None
        assert name[1] in question or name[1] == "there"
        assert answer.endswith("\nYour friends at Larkspur")
    file = tmp_path / "support.jsonl"
    subprocess.run([sys.executable, str(script), str(file)], check=True, capture_output=True)
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows
    assert len(read_rows(file, formats=[CHAT])) == 240


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_what_its_commands_print(page: Path) -> None:
    run = load(TUTORIALS / "run.py")
    blocks = [body for kind, body in run.BLOCK.findall(page.read_text()) if kind == "console"]
    assert blocks
    for block in blocks:
        for command in run.commands(block):
            assert command
            if command.startswith("python "):
                assert (ROOT / command.split()[1]).exists(), command
            printed = block.removeprefix(f"$ {command}\n").strip()
            assert printed, (
                f"{command}: its output is missing; run examples/tutorials/run.py {page.name} FOLDER --update"
            )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page: Path, tmp_path: Path, tiny_base_folder: Path) -> None:
    """On a random base the figures mean nothing, so gates are overridden; commands, data and
    answers are the page's own."""
    run = load(TUTORIALS / "run.py")

    def change(text: str) -> str:
        text = text.replace("examples/", f"{ROOT}/examples/")
        return re.sub(r"max_steps=\d+", "max_steps=2", text).replace("--alias production", "--alias production --force")

    tutorial = run.Tutorial(tmp_path, change=change)
    added = [
        sys.executable,
        "-m",
        "tunery.gateway.cli",
        "bases",
        "add",
        str(tiny_base_folder),
        "--name",
        "smollm2-135m",
    ]
    subprocess.run(added, check=True, capture_output=True, env=tutorial.environment)
    after = tutorial.run(page.read_text())
    assert "larkspur/support@1" in after or "@1  " in after
    assert "ready: http://127.0.0.1:8000 serves smollm2-135m" in after
    assert re.findall(r"\$ (.*)", after) == re.findall(r"\$ (.*)", page.read_text())
