"""What every trainer must do, asked of this one: pytest test_tunery_dora.py."""

from tunery.plugins.testing import TrainerConformance


class TestDora(TrainerConformance):
    trainer = "dora"
