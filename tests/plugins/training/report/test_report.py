"""Reports of whole jobs: stored with the version, the same when resumed, and right about planted rows."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins.training.conftest import Train
from tests.plugins.training.job.test_launcher import METHODS, Killed, kill_at
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import JobEvent, ReportWritten, StepCompleted, encode_event
from tunery.plugins.testing import CHATML, write_pairs
from tunery.plugins.trainers import LoraParameters
from tunery.plugins.training import TrainRequest, reproduce, resume
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.inputs.read import read_inputs
from tunery.plugins.training.loop.compute import ComputeContext
from tunery.plugins.training.report import (
    Report,
    ReportFacts,
    Sample,
    assemble_report,
    read_report,
    summarize,
    write_report,
)
from tunery.plugins.training.report.builder import ReportBuilder, history, speeds, steps_of
from tunery.plugins.training.report.findings import RowLoss
from tunery.plugins.training.report.markdown import page, samples_page
from tunery.registry import Base, Version
from tunery.registry.registry import Registry
from tunery.registry.versions.reports import LIMITS, report_files


def chat(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w") as file:
        for question, answer in rows:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def report_of(version: Version, registry: Registry) -> Report:
    report = read_report(registry.files(version)["report/report.json"])
    assert report is not None
    return report


@pytest.fixture
def no_picture() -> None:
    """Here reports have their picture."""


@pytest.mark.parametrize("method", METHODS)
def test_a_job_stores_its_report_with_the_version(
    method: str, train: Train, registry: Registry, events: list[JobEvent]
) -> None:
    version = train(method, epochs=6, eval_every=16)
    report = report_of(version, registry)
    assert {entry.path for entry in version.files} >= set(LIMITS)
    assert report.held_out is not None
    assert report.held_out.before == pytest.approx(version.metrics["base_loss"], rel=1e-4)
    assert report.held_out.after == pytest.approx(version.metrics["eval_loss"], rel=1e-4)
    assert report.held_out.low < report.held_out.after - report.held_out.before < report.held_out.high < 0
    assert (report.outcomes.win, report.held_out.rows) == (8, 8)
    assert (report.rows, report.looked_at) == (32, 32)
    assert report.general is not None
    assert report.general.change.rows >= 40
    assert report.chosen == version.manifest["checkpoint"]["step"]
    assert report.why == version.manifest["checkpoint"]["why"]
    assert [step for step, _ in report.curve] == list(range(1, int(version.metrics["steps"]) + 1))
    assert report.curve[-1][1] == version.metrics["train_loss"]
    assert [list(pair) for pair in report.evaluations] == version.manifest["checkpoint"]["evaluations"]
    (event,) = [event for event in events if isinstance(event, ReportWritten)]
    assert event.lines == summarize(report, chosen=False)


def test_rows_and_samples_are_named_and_shown(train: Train, registry: Registry, data: Path) -> None:
    files = registry.files(train("lora", epochs=6))
    rows = [json.loads(line) for line in files["report/rows.jsonl"].read_text().splitlines()]
    own = [row for row in rows if row["split"] != "general"]
    assert sorted(row["line"] for row in own) == list(range(1, 41))
    assert {row["file"] for row in own} == {data.name}
    assert all(row["after"] < row["before"] for row in own)
    samples = json.loads(files["report/samples.json"].read_text())
    texts = [json.loads(line)["messages"] for line in data.read_text().splitlines()]
    held_out = {row["line"] for row in rows if row["split"] == "held_out"}
    assert len(samples) == 6
    for sample in samples:
        question, answer = texts[sample["line"] - 1]
        assert question["content"] in sample["prompt"]
        assert sample["reference"] == answer["content"]
        assert sample["line"] in held_out
        assert sample["outcome"] == "win"
    assert "### rows.jsonl:" in files["report/samples.md"].read_text()
    picture = files["report/loss.png"].read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24]) == (1920, 1080)
    markdown = files["report/report.md"].read_text()
    assert "![Loss by step](loss.png)" in markdown
    assert "item " not in markdown, "the report itself holds no text of a row"


def test_a_planted_wrong_answer_is_the_most_suspicious_row(train: Train, registry: Registry, tmp_path: Path) -> None:
    rows = [(f"item {n}", "odd invoice refunds" if n % 2 else "even ticket") for n in range(120)]
    wrong = 61
    rows[wrong - 1] = (rows[wrong - 1][0], "yes odd refunds ticket")
    path = chat(tmp_path / "planted.jsonl", rows)
    held_out = chat(tmp_path / "val.jsonl", [(f"item {n}", "even ticket") for n in range(200, 220, 2)])
    report = report_of(train("lora", files=(path,), validation=held_out, epochs=3, report_rows=1000), registry)
    assert [(note.file, note.line) for note in report.suspicious] == [("planted.jsonl", wrong)]
    assert report.hardest[0].line == wrong
    assert any(f"planted.jsonl:{wrong}" in line for line in summarize(report))


def test_a_memorised_row_is_found(train: Train, registry: Registry, tmp_path: Path) -> None:
    def noise(number: int) -> str:
        return "".join(chr(97 + (number * number * (at + 3) + 7 * at * at) % 26) for at in range(12))

    rows = [(f"secret {n}", noise(n)) for n in range(40)]
    path = chat(tmp_path / "heart.jsonl", [*rows, *([("secret 500", noise(501))] * 20)])
    held_out = chat(tmp_path / "val.jsonl", [(f"secret {n}", noise(n)) for n in range(100, 120)])
    settings: dict[str, Any] = {"epochs": 20, "learning_rate": 0.003, "allow": ("duplicate",)}
    report = report_of(train("full", files=(path,), validation=held_out, **settings), registry)
    assert 20 <= report.counts["memorised"] < 30
    assert {note.line for note in report.memorised} <= set(range(41, 61))
    assert report.suspicious == []
    assert report.memorised[0].like is not None
    assert report.memorised[0].after < report.memorised[0].like / 2


def test_files_of_one_name_are_distinguished(train: Train, registry: Registry, data: Path, tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    other = chat(tmp_path / "held" / data.name, [(f"item {n}", "even ticket") for n in range(50, 58)])
    version = train("lora", files=(data, other), validation=chat(tmp_path / "val.jsonl", [("a", "b")]), epochs=1)
    rows = [json.loads(line) for line in registry.files(version)["report/rows.jsonl"].read_text().splitlines()]
    files = {row["file"] for row in rows if row["split"] == "train"}
    assert files == {f"{data.parent.name}/{data.name}", f"held/{data.name}"}
    assert len([row for row in rows if row["split"] == "train"]) == 48


def test_a_trainer_with_a_loss_of_its_own_is_judged_by_the_better_answers(
    train: Train, registry: Registry, tmp_path: Path
) -> None:
    version = train("dpo", files=(write_pairs(tmp_path / "pairs.jsonl", 40),), epochs=2)
    report, files = report_of(version, registry), registry.files(version)
    assert not report.supervised
    assert report.held_out is not None
    # The curve is of the trainer's own loss, which begins at log 2; rows are of the likelihood of answers.
    assert report.curve[0][1] == pytest.approx(math.log(2), rel=1e-3)
    assert report.held_out.before > 5
    assert "an objective of its own" in files["report/report.md"].read_text()


def test_a_job_that_is_refused_at_the_end_keeps_its_report(
    train: Train, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ArithmeticError("refused")

    monkeypatch.setattr(Registry, "publish", refuse)
    with pytest.raises(ArithmeticError, match="refused"):
        train("lora", epochs=1)
    report = read_report(registry.home.jobs / registry.jobs()[0].id / "report" / "report.json")
    assert report is not None
    assert report.held_out is not None
    assert registry.versions() == []


def test_a_template_that_reads_the_time_gets_that_of_the_job(
    registry: Registry, base_with: Callable[..., Base], data: Path, tmp_path: Path
) -> None:
    base, plugins, parameters = (
        base_with("{{ strftime_now('%Y') }}\n" + CHATML),
        load_plugins(allow=()),
        LoraParameters(),
    )
    request = TrainRequest(adapter="a/b", trainer="lora", base=base.digest, data=(str(data),))
    inputs = read_inputs(request, parameters, registry=registry, plugins=plugins, now=datetime(1987, 6, 5))
    cpu = torch.device("cpu")
    compute = ComputeContext(device=cpu, dtype=torch.float32, measured_dtype=torch.float32)
    evaluation = ReportBuilder(
        inputs, parameters, folder=JobFolder(tmp_path), compute=compute, supervised=True
    ).evaluation
    for example in (*evaluation.held_out, *evaluation.train, *evaluation.general):
        assert evaluation.decode(example.ids).startswith("1987\n")


def test_answers_that_cannot_be_given_fail_no_job(
    train: Train, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunery.plugins.training.report import evaluation

    def mute(*arguments: object, **options: object) -> None:
        raise NotImplementedError("this kind of model cannot generate")

    monkeypatch.setattr(evaluation, "generate_answers", mute)
    version = train("lora", epochs=1)
    assert report_of(version, registry).notes == [
        "There are no answers to show: NotImplementedError: this kind of model cannot generate."
    ]
    assert json.loads(registry.files(version)["report/samples.json"].read_text()) == []


@pytest.mark.slow
def test_however_long_the_run_the_report_stays_within_its_limits(tmp_path: Path) -> None:
    rows = [RowLoss("r" * 200 + ".jsonl", line, "held_out", 5, 2.0, 1.0) for line in range(60_000)]
    steps = [(step, 1.0) for step in range(1, 100_001)]
    facts = ReportFacts(
        adapter="a/b", base="tiny", method="lora", chosen=1, why="", training_rows=0, supervised=True, curve=steps,
        evaluations=steps,
    )  # fmt: skip
    report = assemble_report(rows, facts)
    write_report(report, tmp_path / "report", rows=rows, samples=[])
    assert set(report_files(tmp_path / "report")) == set(LIMITS)
    assert report.curve[-1] == steps[-1]


def test_a_resumed_job_gives_the_same_report(train: Train, registry: Registry) -> None:
    settings: dict[str, Any] = {"epochs": 2, "checkpoint_every": 3, "dropout": 0.1}
    whole = train("lora", **settings)
    with pytest.raises(Killed):
        train("lora", on_event=kill_at(8), **settings)
    again = resume(
        registry.jobs()[0].id, registry=registry, plugins=load_plugins(allow=()), on_event=lambda event: None
    )
    reports = [
        {entry.path: entry.sha256 for entry in version.files if entry.path.startswith("report/")}
        for version in (whole, again)
    ]
    assert set(reports[0]) == set(LIMITS)
    # The picture shows how fast the steps were, which is never the same.
    assert reports[0].pop("report/loss.png")
    assert reports[1].pop("report/loss.png")
    assert reports[0] == reports[1]


def test_a_report_changes_nothing_that_is_trained(train: Train, registry: Registry) -> None:
    version = train("lora", epochs=1, dropout=0.1)
    kinds: list[str] = []
    # Repeating a run tells nothing, and asks nobody.
    again = reproduce(
        version, data=(), registry=registry, plugins=load_plugins(allow=()),
        on_event=lambda event: kinds.append(event.kind),
    )  # fmt: skip
    assert "report" not in kinds
    assert not (registry.home.jobs / registry.jobs()[0].id / "base.json").exists()
    assert again.same


def test_without_matplotlib_the_report_says_how_to_get_the_picture(
    train: Train, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    version = train("lora", epochs=1)
    report = report_of(version, registry)
    assert "report/loss.png" not in registry.files(version)
    assert any("pip install 'tunery[plots]'" in note for note in report.notes)
    markdown = registry.files(version)["report/report.md"].read_text()
    assert "loss.png" not in markdown
    assert "tunery[plots]" in markdown


def test_an_empty_held_out_set_is_reported(train: Train, registry: Registry) -> None:
    report = report_of(train("lora", epochs=1, eval_fraction=0), registry)
    assert (report.held_out, report.outcomes.win, report.memorised) == (None, 0, [])
    assert report.training is not None
    assert "Nothing was held out" in report.notes[0]


def step(number: int, *, loss: float = 2.0, tokens: int = 0, seconds: float = 0.0) -> StepCompleted:
    return StepCompleted(
        step=number, steps=41, loss=loss, learning_rate=1e-3, grad_norm=1.0, tokens=tokens, seconds=seconds
    )


def test_a_line_that_a_crash_cut_short_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = [encode_event(step(number, loss=loss)) for number, loss in ((1, 3.0), (2, 2.0), (2, 2.5))]
    path.write_bytes(
        b"\n".join([whole[0], b'{"kind":"step","st{"kind":"started"}', b"", b"[]", *whole[1:], b'{"kind":"ste'])
    )
    assert history(steps_of(path), "loss") == [(1, 3.0), (2, 2.5)]


def test_speeds_are_of_a_stretch_of_steps() -> None:
    steps = [step(1 + n, tokens=100 * n, seconds=0.5 * n) for n in range(41)]
    assert speeds(steps) == [(step, 200.0) for step in range(3, 42)]
    assert speeds(steps[:1]) == speeds([step(1)] * 3) == []


def test_texts_cannot_break_out_of_the_samples_page() -> None:
    text = "```\n# I am a title\n````"
    shown = samples_page([Sample("rows.jsonl", 1, text, text, text, text, 2.0, 1.0, "win")])
    assert shown.count(f"`````text\n{text}\n`````") == 4
    assert samples_page([]) == ""


def test_a_report_is_read_back_and_what_is_none_is_not(tmp_path: Path) -> None:
    import msgspec

    report = Report(adapter="a/b", base="tiny", method="lora", chosen=1, why="the last step", rows=1, looked_at=1)
    path = tmp_path / "report.json"
    path.write_bytes(msgspec.json.encode(report))
    assert read_report(path) == report
    assert "Chosen: the last step." in page(report, picture=False)
    path.write_text("[]")
    assert read_report(path) is None
    assert read_report(tmp_path / "none.json") is None
