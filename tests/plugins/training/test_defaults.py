"""What nobody gave is chosen by rules that say why; what somebody gave is never touched."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunery.plugins.parameters import CHOSEN, TrainingParameters, given_names, read_parameters
from tunery.plugins.trainers import FullParameters, LoraParameters
from tunery.plugins.training.defaults import RULES, Facts, choose

facts = st.builds(Facts, rows=st.integers(1, 200_000), held_out=st.integers(0, 500), hidden=st.integers(64, 8192))


@given(facts=facts, kind=st.sampled_from([LoraParameters, FullParameters, TrainingParameters]))
def test_every_choice_is_a_valid_value_with_a_reason_and_a_source(facts: Facts, kind: type[TrainingParameters]) -> None:
    chosen, choices = choose(kind(), set(), facts)
    for choice in choices:
        assert getattr(chosen, choice.name) == choice.value
        assert choice.reason
        assert choice.source
    values = {choice.name: choice.value for choice in choices}
    assert read_parameters(kind, values) == chosen


@given(facts=facts, rate=st.floats(1e-6, 1.0), epochs=st.floats(0.5, 20.0))
def test_what_is_given_stays(facts: Facts, rate: float, epochs: float) -> None:
    parameters = LoraParameters(learning_rate=rate, epochs=epochs)
    chosen, choices = choose(parameters, {"learning_rate", "epochs"}, facts)
    assert (chosen.learning_rate, chosen.epochs) == (rate, epochs)
    assert not {"learning_rate", "epochs"} & {choice.name for choice in choices}


def test_low_rank_pairs_learn_ten_times_faster_than_everything_together() -> None:
    many = Facts(rows=5000, held_out=100, hidden=576)
    lora, full = (choose(kind(), set(), many)[0].learning_rate for kind in (LoraParameters, FullParameters))
    assert 9 < lora / full < 11


def test_auto_is_the_same_as_not_given() -> None:
    values = {"learning_rate": "auto", "epochs": "2"}
    assert given_names(values) == {"epochs"}
    assert read_parameters(LoraParameters, values).learning_rate == LoraParameters().learning_rate


def test_few_rows_are_seen_more_often_and_many_less() -> None:
    def epochs(rows: int) -> float:
        return choose(LoraParameters(), set(), Facts(rows=rows, held_out=10, hidden=576))[0].epochs

    assert [epochs(rows) for rows in (4, 20, 1000, 25_000)] == [25, 5, 3, 1]


def test_what_is_documented_as_chosen_has_a_rule() -> None:
    assert set(RULES) == CHOSEN
