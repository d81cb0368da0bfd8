"""Compiling grammars beside the forward passes: hostile ones meet their limits, and other requests
do not wait for them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tunery.gateway.engine.sampling_params import Constraint
from tunery.gateway.engine.structured_output import compiler as compiling
from tunery.gateway.engine.structured_output.compiler import GrammarCompiler
from tunery.gateway.engine.structured_output.grammars import Grammars
from tunery.gateway.engine.structured_output.trial import Trial, TrialProcess
from tunery.registry.errors import InvalidInput, Unavailable

VOCAB, EOS = 384, [2]
PER_TENANT = 2
SIMPLE = Constraint("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}}')
WAIT = 120


def hostile(number: int) -> Constraint:
    """Minutes and gigabytes: the integers that several primes divide."""
    factors = [{"type": "integer", "multipleOf": prime} for prime in (7, 11, 13, 17, 19, 23)]
    return Constraint("json_schema", json.dumps({"title": str(number), "allOf": factors}))


class RecordingTrials(TrialProcess):
    """Trials that are remembered."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, VOCAB, EOS)
        self.begun: list[Trial] = []

    def begin(self, constraint: Constraint) -> Trial:
        self.begun.append(trial := super().begin(constraint))
        return trial


@pytest.fixture(scope="module")
def trials(tiny_base_folder: Path) -> Iterator[RecordingTrials]:
    trials = RecordingTrials(tiny_base_folder)
    yield trials
    trials.close()


@pytest.fixture
def compiler(trials: RecordingTrials, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> GrammarCompiler:
    monkeypatch.setattr(compiling, "PER_TENANT", PER_TENANT)
    trials.begun.clear()
    return GrammarCompiler(Grammars(tiny_base_folder, VOCAB, EOS), trials)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_hostile_grammar_is_ended_and_another_tenants_is_not_held_up(
    compiler: GrammarCompiler, trials: RecordingTrials
) -> None:
    bad = [compiler.submit("mallory", hostile(number)) for number in range(PER_TENANT + 1)]
    good = compiler.submit("acme", SIMPLE)
    assert good.result(WAIT).mask().any()
    assert not bad[-1].done(), "it has not even begun"
    assert len(trials.begun) <= PER_TENANT + 1
    for future in bad:
        with pytest.raises(InvalidInput, match="takes more than 2 s or 128 MB to compile") as caught:
            future.result(WAIT)
        assert caught.value.code == "invalid_constraint"
    before = len(trials.begun)
    with pytest.raises(InvalidInput, match="takes more than"):
        compiler.submit("mallory", hostile(0)).result(WAIT)
    assert len(trials.begun) == before, "it is remembered"


def test_what_nobody_waits_for_any_more_is_killed_and_makes_room(
    compiler: GrammarCompiler, trials: RecordingTrials
) -> None:
    gone = [compiler.submit("mallory", hostile(number)) for number in range(10, 14)]
    shared = compiler.submit("mallory", hostile(10))
    until(lambda: len(trials.begun) == PER_TENANT and all(trial._pid for trial in trials.begun))
    processes = [Path(f"/proc/{trial._pid}") for trial in trials.begun]
    for future in gone:
        compiler.cancel(future)
    until(lambda: not processes[1].exists())
    if not processes[0].exists():  # somebody still waits for this one: only its own limit ends it
        with pytest.raises(InvalidInput, match="takes more than 2 s or 128 MB to compile"):
            shared.result(WAIT)
    assert compiler.submit("mallory", SIMPLE).result(WAIT).mask().any()
    assert len(trials.begun) == PER_TENANT + 1, "those that had not begun never do"
    compiler.cancel(shared)
    until(lambda: not processes[0].exists())


def test_equal_grammars_are_tried_once(compiler: GrammarCompiler, trials: RecordingTrials) -> None:
    futures = [compiler.submit(tenant, SIMPLE) for tenant in ("acme", "globex") for _ in range(8)]
    assert all(future.result(WAIT).mask().any() for future in futures)
    assert len({id(future.result()) for future in futures}) == 16
    assert compiler.submit("acme", SIMPLE).result(WAIT)
    assert len(trials.begun) == 1


def test_a_refusal_is_what_the_grammar_says(compiler: GrammarCompiler) -> None:
    for text, message in (("(", "unclosed group"), ("\ud800", "cannot be read")):
        with pytest.raises(InvalidInput, match=message):
            compiler.submit("acme", Constraint("regex", text)).result(WAIT)


def test_a_process_that_was_killed_is_started_again(compiler: GrammarCompiler, trials: RecordingTrials) -> None:
    compiler.submit("acme", Constraint("regex", "one")).result(WAIT)
    process = trials._end.peek()[2][0]  # type: ignore[attr-defined]
    process.kill()
    process.wait()
    compiler.submit("acme", Constraint("regex", "two")).result(WAIT)


def test_a_process_that_cannot_run_is_an_error_and_no_verdict(tiny_base_folder: Path) -> None:
    trials = TrialProcess(tiny_base_folder, VOCAB, EOS)
    trials._command = ["/bin/false"]
    with pytest.raises(Unavailable, match="does not run"):
        GrammarCompiler(Grammars(tiny_base_folder, VOCAB, EOS), trials).submit("acme", SIMPLE).result(WAIT)
    trials.close()
