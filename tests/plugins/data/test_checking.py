"""Checking whole files: the same in any number of processes, whatever the bytes, whoever's checks."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.plugins.data.test_checks import PLUGINS, chat
from tunery.plugins.data import checking
from tunery.plugins.data.check import Check, DataReport, Fault
from tunery.plugins.data.checking import check_data
from tunery.plugins.data.line import Line, Place
from tunery.plugins.hookspecs import CheckInfo, hookimpl
from tunery.plugins.manager import Plugins, load_plugins
from tunery.registry.errors import NotFound, UnknownName


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_processes_change_nothing(tmp_path: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_WORTH_A_POOL", 0)
    rows = [
        chat(f"question {n % 1200} of a few more words than eight, {n % 7}", f"answer {n % 5}") for n in range(1500)
    ]
    path = write(tmp_path / "rows.jsonl", *rows)
    with path.open("ab") as file:
        file.write(b"{broken\n\xff\n")
    val = write(tmp_path / "val.jsonl", *rows[:3])
    one, two = (
        check_data([path], val, plugins=PLUGINS, base_folder=tiny_base_folder, max_length=64, processes=processes)
        for processes in (1, 2)
    )
    assert len(one.findings) > 100
    assert two == one


def test_a_report_goes_through_json(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", chat("a", "b"), chat("a", "c"))
    report = check_data([path], None, plugins=PLUGINS, base_folder=None, max_length=8)
    assert msgspec.json.decode(msgspec.json.encode(report), type=DataReport) == report
    assert str(report.errors[0]).startswith("rows.jsonl:2: $: has the prompt of rows.jsonl:1")


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    paths = [write(tmp_path / folder / "rows.jsonl", chat("a", "b")) for folder in ("one", "two")]
    (finding,) = check_data(paths, None, plugins=PLUGINS, base_folder=None, max_length=8).findings
    assert (finding.file, finding.rule) == (str(paths[1]), "duplicate")
    assert str(paths[0]) in finding.message


def test_files_and_formats_that_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", chat("a", "b"))
    with pytest.raises(NotFound, match=r"none\.jsonl"):
        check_data([tmp_path / "none.jsonl"], None, plugins=PLUGINS, base_folder=None, max_length=8)
    with pytest.raises(UnknownName, match="did you mean 'chat'"):
        check_data([path], None, plugins=PLUGINS, base_folder=None, max_length=8, format="chatt")
    named = check_data([path], None, plugins=PLUGINS, base_folder=None, max_length=8, format="alpaca")
    assert {finding.path for finding in named.errors} >= {"$.instruction", "$.output"}


class Shouting(Check):
    """Answers in capitals, and a count of them."""

    seen = 0

    def of_line(self, line: Line) -> Iterable[Fault]:
        if line.answer.isupper():
            yield Fault("$", "shouts", "calm down")

    def note(self, line: Line) -> Any:
        return line.answer.isupper()

    def gather(self, place: Place, note: Any) -> Iterable[Fault]:
        self.seen += note
        return ()

    def statistics(self) -> dict[str, Any]:
        return {"shouting": self.seen}


class Failing(Check):
    """A plugin's bug."""

    def of_line(self, line: Line) -> Iterable[Fault]:
        raise RuntimeError("oops")


def with_checks(*infos: CheckInfo) -> Plugins:
    def register_checks(register: Callable[[CheckInfo], None]) -> None:
        for info in infos:
            register(info)

    plugins = load_plugins(allow=())
    plugins.add(types.SimpleNamespace(register_checks=hookimpl(register_checks)), "mine")
    return plugins


def info(name: str, kind: type[Check]) -> CheckInfo:
    return CheckInfo(name=name, summary="", severity="info", entrypoint=f"{kind.__module__}:{kind.__name__}")


def test_a_plugin_adds_a_check(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", chat("a", "b"), chat("c", "DONE"))
    report = check_data([path], None, plugins=with_checks(info("shouting", Shouting)), base_folder=None, max_length=8)
    assert [(f.line, f.rule, f.severity) for f in report.findings] == [(2, "shouting", "info")]
    assert report.statistics["shouting"] == 1


def test_a_check_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", chat("a", "b"), chat("a", "b"))
    report = check_data([path], None, plugins=with_checks(info("failing", Failing)), base_folder=None, max_length=8)
    assert [(f.line, f.rule) for f in report.errors] == [(1, "failing"), (2, "failing"), (2, "duplicate")]
    assert "RuntimeError: oops" in report.errors[0].message


LINE = st.binary(max_size=80) | st.sampled_from(
    [
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\\u0000"}]}',
        b"{",
        b"[" * 5000,
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, max_size=5))
def test_any_bytes_are_checked_without_a_crash(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = check_data([path], None, plugins=PLUGINS, base_folder=None, max_length=64, processes=1)
    assert msgspec.json.encode(report)
    assert not [finding for finding in report.findings if "could not be checked" in finding.message]
    assert report.errors or report.statistics["files"][0]["rows"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=st.text(max_size=40), answer=st.text(max_size=40))
def test_any_text_is_checked_without_a_crash(
    tmp_path: Path, tiny_base_folder: Path, question: str, answer: str
) -> None:
    path = write(tmp_path / "rows.jsonl", chat(question, answer))
    report = check_data([path], path, plugins=PLUGINS, base_folder=tiny_base_folder, max_length=64, processes=1)
    assert not [finding for finding in report.findings if "could not be checked" in finding.message]


def test_checking_imports_no_torch() -> None:
    code = (
        "import sys; from tunery.plugins.data import checking; from tunery.plugins.manager import load_plugins; load_plugins();"
        "print(sorted({'torch', 'transformers', 'ftfy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_process_that_may_start_none_checks_by_itself(tmp_path: Path) -> None:
    """A daemon's children are refused by multiprocessing."""
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"prompt": "one", "completion": "two " * 250}) + "\n"
    path.write_text(row * (checking._WORTH_A_POOL // len(row) + 1))
    seen = get_context("spawn").Queue()
    process = get_context("spawn").Process(target=count_duplicates, args=(path, seen), daemon=True)
    process.start()
    assert seen.get(timeout=60) == path.read_bytes().count(b"\n") - 1
    process.join()


def count_duplicates(path: Path, seen: Any) -> None:
    plugins = load_plugins(allow=())
    report = check_data([path], None, plugins=plugins, base_folder=None, max_length=64, processes=2)
    seen.put(report.counts["duplicate"]["error"])
