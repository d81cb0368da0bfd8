"""Parameters are read from text or values, and every problem is reported at once."""

from __future__ import annotations

import pytest

from tunery.plugins.parameters import TrainingParameters, read_parameters
from tunery.plugins.trainers.parameters import DpoParameters
from tunery.registry.errors import InvalidInput


def test_parameters_report_every_problem_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_parameters(TrainingParameters, {"learning_rat": "1", "epochs": "-2", "schedule": "cosin", "seed": "3"})
    message = caught.value.message
    assert "unknown parameter 'learning_rat': did you mean 'learning_rate'?" in message
    assert "epochs='-2'" in message
    assert "schedule='cosin': did you mean 'cosine'?" in message
    assert caught.value.code == "invalid_parameter"


def test_only_the_first_problems_are_listed_and_the_rest_counted() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_parameters(TrainingParameters, {f"theft{n}" + "x" * 10_000: 1 for n in range(1000)})
    lines = caught.value.message.splitlines()
    assert (len(lines), lines[-1]) == (21, "and 980 more")
    assert len(caught.value.message) < 20_000


def test_parameters_are_read_from_text_and_from_values() -> None:
    read = read_parameters(TrainingParameters, {"learning_rate": "2e-4", "epochs": 2, "schedule": "linear"})
    assert (read.learning_rate, read.epochs, read.schedule) == (2e-4, 2.0, "linear")


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [
        ("r", 1_000_000_000, "r is a whole number, at least 1, at most 4096"),
        ("r", "1000000000", "r is a whole number, at least 1, at most 4096"),
        ("alpha", 1e300, "alpha is a number, more than 0, at most 1000000"),
        ("epochs", 1e308, "epochs is a number, more than 0, at most 10000"),
        ("batch_size", 10**9, "batch_size is a whole number, at least 1, at most 65536"),
        ("micro_batch_size", 10**9, "micro_batch_size is a whole number, at least 1, at most 65536"),
        ("max_length", 10**9, "max_length is a whole number, at least 1, at most 1048576"),
        ("max_steps", 10**30, "max_steps is a whole number, at least 0, at most 1000000000"),
        ("memory_gb", 1e308, "memory_gb is a number, at least 0, at most 1000000"),
        ("seed", 2**64, f"seed is a whole number, at least 0, at most {2**63 - 1}"),
        ("weight_decay", 1e308, "weight_decay is a number, at least 0, at most 1000"),
        ("sft_weight", 1e308, "sft_weight is a number, at least 0, at most 1000"),
        ("learning_rate", "inf", "learning_rate is a number, more than 0"),
        ("learning_rate", "nan", "learning_rate is a number, more than 0"),
    ],
)
def test_sizes_that_no_run_can_have_are_refused(name: str, value: object, most: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_parameters(DpoParameters, {name: value})
    assert caught.value.message == f"{name}={value!r}: {most}"
