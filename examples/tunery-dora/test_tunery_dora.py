"""Run the conformance suite on the DoRA trainer: pytest test_tunery_dora.py."""

from tunery.plugins.testing import TrainerConformance


class TestDora(TrainerConformance):
    trainer = "dora"
