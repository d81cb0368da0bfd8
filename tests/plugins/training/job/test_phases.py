"""What a run takes: every phase is quoted and measured, and they add up."""

from __future__ import annotations

from itertools import count

import pytest

from tests.plugins.training.conftest import Train
from tunery.plugins.events import JobEvent, PhasesTimed, Quoted
from tunery.plugins.training.job.phases import Phases, estimate_phases, minutes_text


def test_phases_inside_each_other_are_counted_once() -> None:
    ticks = count()
    phases = Phases(lambda: float(next(ticks)))  # every look at the clock is a second later
    with phases.of("training"):
        with phases.of("evaluation"):
            pass
        with phases.of("evaluation"), phases.of("loading"):
            pass
    with phases.of("training"):
        pass
    assert phases.seconds == {"evaluation": 3.0, "loading": 1.0, "training": 4.0}
    assert sum(phases.seconds.values()) == 7.0 + 1.0


def test_a_quote_has_what_was_measured_and_estimates_the_rest() -> None:
    phases = Phases()
    phases.seconds = {"loading": 2.0, "base questions": 20.0, "base loss": 6.0, "preflight": 1.0}
    estimate = estimate_phases(
        phases, training=120.0, evaluations=5, held_out_share=0.1, report=True, save_evaluations=8, gates=True
    )
    assert estimate == {
        "loading": 2.0, "base questions": 20.0, "base loss": 6.0, "preflight": 1.0, "training": 120.0, "evaluation": 30.0,
        "report": 20.0, "saving": 50.0, "gates": 34.0,
    }  # fmt: skip
    unmeasured = estimate_phases(
        Phases(), training=120.0, evaluations=5, held_out_share=0.1, report=False, save_evaluations=0, gates=False
    )
    assert unmeasured == {"training": 120.0, "evaluation": pytest.approx(20.0), "report": 0, "saving": 0, "gates": 0}


def test_minutes_are_listed_longest_first() -> None:
    assert minutes_text({"training": 240.0, "gates": 36.0, "report": 18.0, "preflight": 1.0}) == (
        "4.9 minutes (training 4.0, gates 0.6, report 0.3)"
    )
    assert minutes_text({"training": 2.0, "report": 1.0}) == "0.1 minutes"
    assert minutes_text({}) == "0.0 minutes"


@pytest.mark.usefixtures("forked_gates")
def test_a_run_says_what_every_phase_took_beside_what_was_quoted(train: Train, events: list[JobEvent]) -> None:
    version = train("full", epochs=1, eval_every=3, gates=True)
    (quote,) = (event for event in events if isinstance(event, Quoted))
    (times,) = (event for event in events if isinstance(event, PhasesTimed))
    assert sum(quote.parts.values()) == pytest.approx(60 * quote.minutes)
    assert set(times.seconds) == set(quote.parts)
    assert min(quote.parts.values()) > 0
    assert times.quoted_minutes == quote.minutes
    assert version.manifest["phases"] == times.seconds
    # Nothing is counted twice; seconds are kept in tenths.
    whole = version.manifest["finished_at"] - version.manifest["started_at"]
    assert sum(times.seconds.values()) <= whole + 0.5
