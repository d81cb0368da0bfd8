"""Trackers hear of their job's events; one that fails stops neither the job nor the others."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec

from tests.plugins.trackers.test_wandb import JOB, STARTED, STEP
from tunery.plugins.events import EventSink, JobEvent
from tunery.plugins.hookspecs import TrackerInfo, hookimpl
from tunery.plugins.manager import Plugins
from tunery.plugins.training.queued.tracking import Tracking
from tunery.registry.errors import Conflict
from tunery.registry.jobs.history import Note

seen: list[tuple[str, JobEvent]] = []


def good(job: object, options: dict[str, Any]) -> EventSink:
    return lambda event: seen.append((options["project"], event))


def broken(job: object, options: dict[str, Any]) -> EventSink:
    def fail(event: JobEvent) -> None:
        raise RuntimeError("the network is gone")

    return fail


def plugins() -> Plugins:
    @hookimpl
    def register_trackers(register: Callable[[TrackerInfo], None]) -> None:
        for name in ("good", "broken", "absent"):
            here = f"{__name__}:{name}"
            register(TrackerInfo(name=name, summary=name, package="json", entrypoint=here, read=here))

    loaded = Plugins()
    loaded.add(SimpleNamespace(register_trackers=register_trackers), "trackers")
    return loaded


def wanting(*names: str) -> Any:
    wanted = [{"type": name, name: {"project": "p"}} for name in names]
    return msgspec.structs.replace(JOB, details={"integrations": wanted})


def test_a_tracker_that_fails_is_reported_once_and_left_alone() -> None:
    seen.clear()
    notes: list[Note] = []
    tracking = Tracking(wanting("broken", "absent", "good"), plugins(), report=notes.append)
    for event in (STARTED, STEP, STEP):
        tracking(event)
    assert seen == [("p", STARTED), ("p", STEP), ("p", STEP)]
    assert [(note.level, note.data["tracker"]) for note in notes] == [("warn", "absent"), ("warn", "broken")]
    assert "the network is gone" in notes[1].message


def test_a_report_that_is_refused_changes_nothing() -> None:
    def refuse(note: Note) -> None:
        raise Conflict("it is another worker's", code="claim_lost")

    tracking = Tracking(wanting("broken"), plugins(), report=refuse)
    tracking(STARTED)


def test_a_job_without_integrations_has_no_trackers() -> None:
    seen.clear()
    Tracking(JOB, Plugins(), report=lambda note: None)(STARTED)
    assert seen == []
