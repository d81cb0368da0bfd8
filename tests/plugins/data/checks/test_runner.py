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

from tests.peak_memory import PEAK
from tests.plugins.data.checks.check_rows import PLUGINS, chat
from tunery.plugins.data.checks import minhash, runner
from tunery.plugins.data.checks.check import Check, Fault
from tunery.plugins.data.checks.parsed_record import Location, ParsedRecord
from tunery.plugins.data.checks.report import KEPT, DataReport
from tunery.plugins.data.checks.runner import CheckOptions, check_data
from tunery.plugins.discovery import load_plugins
from tunery.plugins.hookspecs import CheckInfo, hookimpl
from tunery.plugins.manager import Plugins
from tunery.registry.errors import NotFound, UnknownName


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_processes_change_nothing(tmp_path: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_POOL_MIN_BYTES", 0)
    rows = [
        chat(f"question {n % 1200} of a few more words than eight, {n % 7}", f"answer {n % 5}") for n in range(1500)
    ]
    path = write(tmp_path / "rows.jsonl", *rows)
    with path.open("ab") as file:
        file.write(b"{broken\n\xff\n")
    val = write(tmp_path / "val.jsonl", *rows[:3])
    one, two = (
        check_data(
            [path],
            CheckOptions(max_length=64, base_folder=tiny_base_folder, processes=processes),
            plugins=PLUGINS,
            validation=val,
        )
        for processes in (1, 2)
    )
    assert len(one.findings) > 100
    assert two == one


def test_a_report_goes_through_json(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", chat("a", "b"), chat("a", "c"))
    report = check_data([path], CheckOptions(max_length=8), plugins=PLUGINS)
    assert msgspec.json.decode(msgspec.json.encode(report), type=DataReport) == report
    assert str(report.errors[0]).startswith("rows.jsonl:2: $: has the prompt of rows.jsonl:1")


def test_files_of_one_name_are_distinguished(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    paths = [write(tmp_path / folder / "rows.jsonl", chat("a", "b")) for folder in ("one", "two")]
    (finding,) = check_data(paths, CheckOptions(max_length=8), plugins=PLUGINS).findings
    assert (finding.file, finding.rule) == (str(paths[1]), "duplicate")
    assert str(paths[0]) in finding.message


def test_files_and_formats_that_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", chat("a", "b"))
    with pytest.raises(NotFound, match=r"none\.jsonl"):
        check_data([tmp_path / "none.jsonl"], CheckOptions(max_length=8), plugins=PLUGINS)
    with pytest.raises(UnknownName, match="did you mean 'chat'"):
        check_data([path], CheckOptions(max_length=8, format="chatt"), plugins=PLUGINS)
    named = check_data([path], CheckOptions(max_length=8, format="alpaca"), plugins=PLUGINS)
    assert {finding.path for finding in named.errors} >= {"$.instruction", "$.output"}


class Shouting(Check):
    """Answers in capitals, and a count of them."""

    seen = 0

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        if record.answer.isupper():
            yield Fault("$", "shouts", "calm down")

    def summarize(self, record: ParsedRecord) -> Any:
        return record.answer.isupper()

    def compare(self, location: Location, summary: Any) -> Iterable[Fault]:
        self.seen += summary
        return ()

    def statistics(self) -> dict[str, Any]:
        return {"shouting": self.seen}


class Failing(Check):
    """A plugin's bug."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
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
    report = check_data([path], CheckOptions(max_length=8), plugins=with_checks(info("shouting", Shouting)))
    assert [(f.line, f.rule, f.severity) for f in report.findings] == [(2, "shouting", "info")]
    assert report.statistics["shouting"] == 1


def test_a_check_that_raises_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", chat("a", "b"), chat("a", "b"))
    report = check_data([path], CheckOptions(max_length=8), plugins=with_checks(info("failing", Failing)))
    assert [(f.line, f.rule) for f in report.errors] == [(1, "failing"), (2, "failing"), (2, "duplicate")]
    assert "RuntimeError: oops" in report.errors[0].message


LINE = st.binary(max_size=80) | st.sampled_from(
    [
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\\u0000"}]}',
        b"{",
        b"[" * 5000,
    ]
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(lines=st.lists(LINE, max_size=5))
def test_any_bytes_are_checked_without_a_crash(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = check_data([path], CheckOptions(max_length=64, processes=1), plugins=PLUGINS)
    assert msgspec.json.encode(report)
    assert not [finding for finding in report.findings if "could not be checked" in finding.message]
    assert report.errors or report.statistics["files"][0]["rows"]


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(question=st.text(max_size=40), answer=st.text(max_size=40))
def test_any_text_is_checked_without_a_crash(
    tmp_path: Path, tiny_base_folder: Path, question: str, answer: str
) -> None:
    path = write(tmp_path / "rows.jsonl", chat(question, answer))
    report = check_data(
        [path], CheckOptions(max_length=64, base_folder=tiny_base_folder, processes=1), plugins=PLUGINS, validation=path
    )
    assert not [finding for finding in report.findings if "could not be checked" in finding.message]


def test_checking_imports_no_torch() -> None:
    code = (
        "import sys; from tunery.plugins.data.checks import runner; from tunery.plugins.discovery import load_plugins; load_plugins();"
        "print(sorted({'torch', 'transformers', 'ftfy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_process_that_may_start_none_checks_by_itself(tmp_path: Path) -> None:
    """A daemon's children are refused by multiprocessing."""
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"prompt": "one", "completion": "two " * 250}) + "\n"
    path.write_text(row * (runner._POOL_MIN_BYTES // len(row) + 1))
    seen = get_context("spawn").Queue()
    process = get_context("spawn").Process(target=count_duplicates, args=(path, seen), daemon=True)
    process.start()
    assert seen.get(timeout=60) == path.read_bytes().count(b"\n") - 1
    process.join()


def count_duplicates(path: Path, seen: Any) -> None:
    plugins = load_plugins(allow=())
    report = check_data([path], CheckOptions(max_length=64, processes=2), plugins=plugins)
    seen.put(report.counts["duplicate"]["error"])


def test_a_file_that_breaks_off_is_one_finding_after_those_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([chat("a", "b"), chat("a", "b"), chat("c", "d")], indent=1)[:-60])
    other = write(tmp_path / "other.jsonl", chat("e", "f"))
    report = check_data([path, other], CheckOptions(max_length=8), plugins=PLUGINS)
    assert [(f.file, f.line, f.rule) for f in report.errors] == [
        ("rows.json", 2, "duplicate"),
        ("rows.json", 26, "schema"),
    ]
    assert "row 3 is not complete" in report.errors[-1].message
    assert [file["rows"] for file in report.statistics["files"]] == [2, 1]


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("deep.jsonl", b"[" * 5000 + b"]" * 5000, 1, "row 1 is nested too deeply"),
        ("open.csv", b'prompt,completion\n"unterminated,x\n', 2, "is not CSV (unexpected end of data)"),
        ("junk.parquet", b"PAR1junkPAR1", 0, "is damaged (Parquet "),
        ("junk.jsonl.gz", b"\x1f\x8b" + b"junk" * 9, 0, "is damaged where it is gzipped"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_without_its_folder(
    tmp_path: Path, name: str, content: bytes, line: int, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    (finding,) = check_data([path], CheckOptions(max_length=1), plugins=PLUGINS).findings
    assert (finding.file, finding.line) == (name, line)
    assert finding.message.startswith(message)
    assert finding.fix
    assert str(tmp_path) not in str(finding)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_number_that_python_does_not_read_is_a_fault_of_its_row(tmp_path: Path, name: str) -> None:
    messages = f'[{{"role": "user", "content": "a", "weight": {"1" * 5000}}}]'
    text = 'messages\n"' + messages.replace('"', '""') + '"\n' if name == "a.csv" else f'{{"messages": {messages}}}\n'
    path = tmp_path / name
    path.write_text(f"[{text}]" if name == "a.json" else text)
    (finding,) = check_data([path], CheckOptions(max_length=1), plugins=PLUGINS).findings
    assert (finding.message, finding.fix) == ("holds a number of 5000 digits", "write it as a text, in quotes")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_only_a_file_of_no_rows_at_all_has_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    (finding,) = check_data([path], CheckOptions(max_length=1), plugins=PLUGINS).findings
    assert finding.message == "has no rows"
    path.write_bytes(content + b"5\n")
    (finding,) = check_data([path], CheckOptions(max_length=1), plugins=PLUGINS).findings
    assert finding.message == "is a number, not an object"


def test_a_file_of_another_kind_is_one_finding(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text("a line that is no row\n" * 20_000)
    report = check_data([path], CheckOptions(max_length=8), plugins=PLUGINS)
    assert [(f.line, f.rule) for f in report.findings] == [(0, "schema")]


def test_findings_are_described_up_to_a_number_and_counted_all(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *[{"prompt": "a"}] * (KEPT + 500))
    report = check_data([path], CheckOptions(max_length=8), plugins=PLUGINS)
    assert len(report.findings) == KEPT
    assert report.counts == {"schema": {"error": KEPT + 500}}
    assert report.count("error") == KEPT + 500
    path = tmp_path / "rows.json"
    path.write_text("[\n" + '{"prompt": "a"},\n' * (KEPT + 500) + "oops]")
    report = check_data([path], CheckOptions(max_length=8), plugins=PLUGINS)
    assert len(report.findings) == KEPT + 1
    assert report.findings[-1].line == KEPT + 502
    assert report.count("error", without=["schema"]) == report.count("warning") == 0


HOSTILE = {
    "doubled keys": "{" + ",".join(f'"k{n // 2}":1' for n in range(300_000)) + "}",
    "unknown keys": '{"messages":[],' + ",".join(f'"k{n}":1' for n in range(200_000)) + "}",
    "empty messages": '{"messages":[' + "{}," * 1_300_000 + "{}]}",
    "empty parts": '{"messages":[{"role":"assistant","content":[' + "{}," * 1_000_000 + "{}]}]}",
    "words": json.dumps({"prompt": "q", "completion": " ".join(f"w{n}" for n in range(500_000))}),
    "addresses": json.dumps({"prompt": "q", "completion": "a.b@c.d+1 2-" * 300_000}),
    "brackets": json.dumps({"prompt": "q", "completion": "{{[<" * 900_000 + "password:"}),
    "depth": '{"prompt":"q","completion":' + "[" * 900 + "]" * 900 + "}",
    "9 MB": json.dumps({"prompt": "q", "completion": "word " * 1_900_000}),
}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_row_takes_bounded_work_and_memory_whatever_it_holds(tmp_path: Path) -> None:
    """Checked one after another in a process of its own; what was quadratic took minutes, and one row 3.3 GB."""
    for name, row in HOSTILE.items():
        (tmp_path / f"{name}.jsonl").write_text(row + "\n")
    code = PEAK + (
        "import sys; from pathlib import Path; from tunery.plugins.data.checks.runner import CheckOptions, check_data\n"
        "from tunery.plugins.discovery import load_plugins\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.jsonl')):\n"
        "    report = check_data([path], CheckOptions(max_length=8, processes=1), plugins=load_plugins(allow=()))\n"
        "    assert sum(len(str(finding)) for finding in report.findings) < 20_000, path\n"
        "print(peak() // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 900


def test_a_signature_is_the_same_in_any_number_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"w{n * n % 977}" for n in range(5000))
    whole = minhash.signature(text)
    monkeypatch.setattr(minhash, "_BLOCK", 7)
    assert minhash.signature(text) == whole
