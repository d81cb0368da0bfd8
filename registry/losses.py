"""Give the unit of a version's losses: nats per token, or whatever else its trainer minimised."""

from __future__ import annotations

from tunery.registry.records import Version

__all__ = ["LOSSES", "NATS", "loss_text", "loss_unit"]

NATS = "nats per token"
LOSSES = ("base_loss", "eval_loss", "train_loss", "exact_loss", "delta_loss")
"""Metrics that are losses."""
LONGEST = 40


def loss_unit(version: Version) -> str:
    """Such as `nats per token` or `DPO loss per pair`; by the method for versions that do not record it."""
    unit = version.manifest.get("loss_unit")
    if isinstance(unit, str) and unit:
        # Not trusted: it comes from whoever published the version.
        return "".join(letter for letter in unit if letter.isalnum() or letter in " -/'.")[:LONGEST]
    return "DPO loss per pair" if version.method == "dpo" else NATS


def loss_text(version: Version) -> str:
    """Held-out loss before and after training, such as `4.135 → 2.855` or `0.693 → 0.412 DPO loss per pair`; else
    `-`.
    """
    before, after = version.metrics.get("base_loss"), version.metrics.get("eval_loss")
    if before is None or after is None:
        return "-"
    unit = loss_unit(version)
    return f"{before:.3f} → {after:.3f}" + ("" if unit == NATS else f" {unit}")
