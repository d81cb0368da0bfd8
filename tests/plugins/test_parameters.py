"""Parameters are read from text or values, and every problem is reported at once."""

from __future__ import annotations

import pytest

from tunery.plugins.parameters import TrainingParameters, read_parameters
from tunery.registry.errors import InvalidInput


def test_parameters_report_every_problem_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_parameters(TrainingParameters, {"learning_rat": "1", "epochs": "-2", "schedule": "cosin", "seed": "3"})
    message = caught.value.message
    assert "unknown parameter 'learning_rat': did you mean 'learning_rate'?" in message
    assert "epochs='-2'" in message
    assert "schedule='cosin': did you mean 'cosine'?" in message
    assert caught.value.code == "invalid_parameter"


def test_parameters_are_read_from_text_and_from_values() -> None:
    read = read_parameters(TrainingParameters, {"learning_rate": "2e-4", "epochs": 2, "schedule": "linear"})
    assert (read.learning_rate, read.epochs, read.schedule) == (2e-4, 2.0, "linear")
