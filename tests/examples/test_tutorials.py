"""The tutorials' data is the same every time and their pages run, here on a tiny random base and for two steps."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.forked_process import run_tunery
from tunery.plugins.data import CHAT, PROMPT_COMPLETION
from tunery.plugins.data.checks.runner import CheckOptions, check_data
from tunery.plugins.data.read.dataset import read_rows
from tunery.plugins.discovery import load_plugins

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


def rules_with_errors(files: list[Path], held_out: Path | None) -> set[str]:
    """The rules of `tunery data check` that find errors, which would stop a run."""
    options = CheckOptions(max_length=1024, processes=1)
    report = check_data(files, options, plugins=load_plugins(), validation=held_out)
    return {finding.rule for finding in report.errors}


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


def test_medical_questions_refuse_what_must_be_and_hold_out_other_medicines(tmp_path: Path) -> None:
    path = TUTORIALS / "medical_questions" / "make_data.py"
    script = load(path)
    train, held_out, pairs = script.make()
    assert (train, held_out, pairs) == script.make()
    refused = {kind.answer for kind in script.REFUSED.values()}
    for rows, count, refusals in ((train, 240, 80), (held_out, 32, 16)):
        assert len({json.dumps(row["messages"][:2]) for row in rows}) == count
        answers = [row["messages"][2]["content"] for row in rows]
        assert sum(answer.startswith(script.REFUSAL) for answer in answers) == refusals
        for row, answer in zip(rows, answers, strict=True):
            _, name, *sections = row["messages"][0]["content"].split("\n")
            fact = answer.partition("\n")[0].removeprefix(f"{name}, ")
            assert answer in refused or fact in sections
    for pair in pairs:
        chosen, rejected = (pair[which][0]["content"].startswith(script.REFUSAL) for which in ("chosen", "rejected"))
        assert chosen != rejected
    known, unknown = (
        {row[key][0]["content"] for rows in sides for row, key in rows}
        for sides in (
            ([(row, "messages") for row in train], [(row, "prompt") for row in pairs]),
            ([(row, "messages") for row in held_out],),
        )
    )
    assert known.isdisjoint(unknown)
    files = [tmp_path / name for name in ("leaflets.jsonl", "held-out.jsonl", "pairs.jsonl")]
    subprocess.run([sys.executable, str(path), *map(str, files)], check=True, capture_output=True)
    written = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    assert written == [train, held_out, pairs]
    assert rules_with_errors(files[:1], files[1]) == rules_with_errors(files[2:], None) == set()


def test_code_rows_are_bodies_that_fit_and_no_file_is_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load(TUTORIALS / "code_generation" / "make_data.py")
    package = tmp_path / "made_up_package"
    package.mkdir()
    (package / "__init__.py").touch()
    method = 'class Box{n}:\n    @cache\n    def {name}(self) -> int:\n        """The {name} of number {n}."""\n        # as given\n        {body}\n'
    for number in range(40):
        body = f"return sum(self.part{number}[at{number}] for at{number} in self.known{number})"
        source = method.format(n=number, name=f"size_{number}", body=body)
        (package / f"file{number}.py").write_text(f"{source}\ndef bare(): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    train, held_out = script.rows(["made_up_package"])
    assert (train, held_out) == script.rows(["made_up_package"])
    assert len(train) + len(held_out) == 40
    assert held_out
    for row in (*train, *held_out):
        found = re.search(r"# made_up_package\.file(\d+)\.Box", row["prompt"])
        assert found is not None
        assert row["prompt"].startswith(f"{script.TASK}{found[0]}{found[1]}\ndef size_{found[1]}(self) -> int:\n")
        assert row["completion"].startswith(f"# as given\nreturn sum(self.part{found[1]}[")
    # A copy of a held-out function in a training file takes it out of the held-out rows.
    held = re.findall(r"file\d+", held_out[0]["prompt"])[0]
    (package / "file0_copy.py").write_text((package / f"{held}.py").read_text())
    copied = script.module_name("made_up_package", package / "file0_copy.py")
    after, rest = script.rows(["made_up_package"])
    assert len(after) == len(train) + 1, f"{copied} is held out; give it another name"
    assert rest == held_out[1:]


@pytest.mark.slow
def test_code_rows_of_tunery_itself_can_be_trained_on(tmp_path: Path) -> None:
    script = TUTORIALS / "code_generation" / "make_data.py"
    files = [tmp_path / "code.jsonl", tmp_path / "held-out.jsonl"]
    command = [sys.executable, str(script), *map(str, files), "tunery.registry", "tunery.plugins"]
    subprocess.run(command, check=True, capture_output=True)
    train, held_out = (read_rows(file, formats=[PROMPT_COMPLETION]) for file in files)
    assert len(train) > 4 * len(held_out) > 40
    assert rules_with_errors(files[:1], files[1]) == set()


def test_a_block_ends_with_a_fence_of_its_own_line() -> None:
    block = '```python\nfence = "```"\n```\n'
    assert load(TUTORIALS / "run.py").BLOCK.findall(block) == [("python", 'fence = "```"\n')]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_what_its_commands_print(page: Path) -> None:
    run = load(TUTORIALS / "run.py")
    blocks = [body for kind, body in run.BLOCK.findall(page.read_text()) if kind == "console"]
    assert blocks
    for block in blocks:
        for command in run.commands(block):
            if command.startswith("python "):
                assert (ROOT / command.split()[1]).exists(), command
            printed = block.partition(f"$ {command}\n")[2].strip()
            assert re.match(r"[^$]", printed), (
                f"{command}: its output is missing; run examples/tutorials/run.py {page.name} FOLDER --update"
            )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page: Path, tmp_path: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a random base the figures mean nothing, so gates are overridden; commands, data and
    answers are the page's own."""
    run = load(TUTORIALS / "run.py")

    def change(text: str) -> str:
        text = text.replace("examples/", f"{ROOT}/examples/")
        # A random base never ends an answer.
        text = re.sub(r"max_tokens=\d+", "max_tokens=8", text)
        return re.sub(r"max_steps=\d+", "max_steps=2", text).replace("tunery train", "tunery train --force")

    class Forked(run.Tutorial):  # type: ignore[name-defined, misc]
        """The commands of `tunery` that end by themselves are forked, which saves what they import."""

        def shell(self, line: str) -> subprocess.CompletedProcess[str]:
            command, *pipes = line.split(" | ")
            if not command.startswith("tunery "):
                return super().shell(line)  # type: ignore[no-any-return]
            done = run_tunery(*shlex.split(command)[1:], environment=self.environment)
            for pipe in pipes:
                end = subprocess.run(pipe, shell=True, input=done.stdout, capture_output=True, text=True, check=True)
                done.stdout = end.stdout
            done.stdout = done.stderr + done.stdout
            return done

    tutorial = Forked(tmp_path, change=change)
    monkeypatch.chdir(tmp_path)
    run_tunery("bases", "add", str(tiny_base_folder), "--name", "smollm2-135m", environment=tutorial.environment)
    after = tutorial.run(page.read_text())
    names = re.findall(r"--name (\S+)", page.read_text())
    assert names
    for name in names:
        versions = re.findall(rf"^{name}@(\d+)  ", after, re.MULTILINE)
        assert versions == [str(number + 1) for number in range(names.count(name))]
    assert "ready: http://127.0.0.1:8000 serves smollm2-135m" in after
    assert re.findall(r"\$ (.*)", after) == re.findall(r"\$ (.*)", page.read_text())
