"""The built-in trainers pass the suite that is there for everybody's; a trainer that is broken does not."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from tunery.plugins.testing import PreferenceConformance, TrainerConformance

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("imported", "no_picture", "forked_gates")]


class TestLora(TrainerConformance):
    trainer = "lora"
    values: ClassVar[dict[str, Any]] = {"dropout": 0.1}


class TestQlora(TrainerConformance):
    trainer = "qlora"


class TestFull(TrainerConformance):
    trainer = "full"
    values: ClassVar[dict[str, Any]] = {"learning_rate": 0.003}


class TestDpo(PreferenceConformance):
    trainer = "dpo"
    values: ClassVar[dict[str, Any]] = {"learning_rate": 0.002, "dropout": 0.1}
