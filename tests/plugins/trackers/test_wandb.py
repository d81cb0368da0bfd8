"""Jobs are logged to Weights & Biases as OpenAI's integration does, whatever becomes of W&B meanwhile."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from tunery.plugins.events import Cancelled, Evaluated, JobEvent, Started, StepCompleted, Succeeded
from tunery.plugins.trackers.wandb import read_options, start
from tunery.registry.errors import InvalidInput
from tunery.registry.records import Job

JOB = Job(id="ftjob-1", adapter="acme/bot", trainer="lora", state="running", created_at=0.0, updated_at=0.0)
STARTED = Started(
    job="ftjob-1", rows=8, held_out=2, tokens=99, cut=0, steps=4, precision="float32", measured_in="float32", choices=[]
)  # fmt: skip
STEP = StepCompleted(
    step=1, steps=4, loss=2.5, learning_rate=0.1, grad_norm=1.0, tokens=20, seconds=1.0, token_accuracy=0.5
)


class FakeWandb(types.ModuleType):
    """Keeps what it is given, as W&B would."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []
        self.config, self.summary = self, {}  # type: ignore[var-annotated]

    def init(self, **options: Any) -> FakeWandb:
        self.calls.append(("init", options))
        return self

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def update(self, values: dict[str, Any], **_: Any) -> None:
        self.calls.append(("config", values))

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.calls.append(("log", (step, values)))

    def finish(self, exit_code: int = 0) -> None:
        self.calls.append(("finish", exit_code))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


STEP_FIGURES = {
    "train/loss": 2.5, "train/learning_rate": 0.1, "train/grad_norm": 1.0, "train/tokens": 20, "train/token_accuracy": 0.5,
}  # fmt: skip


def logged(events: list[JobEvent]) -> None:
    log = start(JOB, read_options({"project": "p", "name": "first", "tags": ["a"]}))
    for event in events:
        log(event)


def test_what_a_job_measures_is_logged_step_by_step(wandb: FakeWandb) -> None:
    events = [
        STARTED,
        Evaluated(step=0, base_loss=3.0),
        STEP,
        Evaluated(step=1, eval_loss=2.0, figures={"margin": 1.0}),
    ]
    logged([*events, Succeeded(version="acme/bot@1", digest="d")])
    (_, options), *rest = wandb.calls
    assert (options["project"], options["name"], options["tags"], options["entity"]) == ("p", "first", ["a"], None)
    assert (options["id"], options["resume"]) == ("ftjob-1", "allow")
    assert rest == [
        ("config", {"rows": 8, "steps": 4}),
        ("log", (1, STEP_FIGURES)),
        ("log", (None, {"eval/loss": 2.0, "eval/margin": 1.0})),
        ("finish", 0),
    ]
    assert wandb.summary == {"version": "acme/bot@1"}


def test_a_job_that_is_cancelled_ends_its_run_as_failed(wandb: FakeWandb) -> None:
    logged([STARTED, Cancelled(error="The job was cancelled")])
    assert wandb.calls[-1] == ("finish", 1)


@pytest.mark.parametrize(
    "options", [None, {}, {"project": ""}, {"project": "p", "color": 1}, {"project": "p", "tags": 1}]
)
def test_other_options_are_refused(options: object) -> None:
    with pytest.raises(InvalidInput, match="wandb: ") as refused:
        read_options(options)
    assert refused.value.param == "integrations"
