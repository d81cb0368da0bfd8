"""Losses are shown in their unit: nats per token, or a trainer's own."""

from __future__ import annotations

from typing import Any

import pytest

from tunery.registry import Version
from tunery.registry.hub.card import model_card
from tunery.registry.losses import loss_text, loss_unit


def version(method: str, **manifest: Any) -> Version:
    return Version(
        adapter="acme/x", number=1, digest="d" * 64, base="tiny", base_digest="b" * 64, method=method, manifest=manifest,
        metrics={"base_loss": 0.6931, "eval_loss": 0.4}, files=(), created_at=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("version", "unit", "text"),
    [
        (version("lora"), "nats per token", "0.693 → 0.400"),
        (version("lora", loss_unit="nats per token"), "nats per token", "0.693 → 0.400"),
        (version("dpo"), "DPO loss per pair", "0.693 → 0.400 DPO loss per pair"),
        (version("dpo", loss_unit="IPO loss per pair"), "IPO loss per pair", "0.693 → 0.400 IPO loss per pair"),
        (version("kto", loss_unit="\x1b[2Jkto | loss"), "2Jkto  loss", "0.693 → 0.400 2Jkto  loss"),
        (version("lora", loss_unit=3), "nats per token", "0.693 → 0.400"),
    ],
)
def test_the_unit_is_the_manifests_or_the_methods(version: Version, unit: str, text: str) -> None:
    assert loss_unit(version) == unit
    assert loss_text(version) == text
    assert f"Losses are in {unit}." in model_card(version, base_model="tiny", repository="acme/x")


def test_the_card_says_what_losses_were_measured_in() -> None:
    card = model_card(version("full", precision={"measured": "float32"}), base_model="tiny", repository="acme/x")
    assert "Losses are in nats per token, measured in float32." in card
