"""Draw losses, learning rate and throughput of a run as one picture, if matplotlib (the extra `plots`) is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunery.plugins.training.report.schema import Report

__all__ = ["draw"]

SIZE, DPI = (12.8, 7.2), 150
"""Inches and dots an inch: 1920 by 1080, a slide."""
COLORS = {"training": "#7aa6c2", "held out": "#c0392b", "base": "#7f8c8d", "rate": "#2c7a4b", "speed": "#8e6bbf"}

Points = Sequence[tuple[int, float]]


def draw(report: Report, path: Path, *, rates: Points = (), speeds: Points = ()) -> str | None:
    """Write a PNG of the losses by step, above learning rate and throughput; what to do instead
    where it cannot be drawn."""
    if not report.curve:
        return "There is no picture: no step was recorded."
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        return "There is no picture of the losses: it needs matplotlib (pip install 'tunery[plots]')."
    figure = Figure(figsize=SIZE, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.set_title(f"{report.adapter}: {report.method} on {report.base}", fontsize=20, loc="left", pad=12)
    _losses(report, upper)
    _course(lower, rates, speeds)
    lower.set_xlabel("step", fontsize=15)
    # No date and no program: the same figures give the same picture.
    figure.savefig(path, format="png", metadata={"Software": None})
    return None


def _losses(report: Report, axes: Any) -> None:
    """Training and held-out loss, the base's, and which step was chosen."""
    axes.plot(*zip(*report.curve, strict=True), linewidth=1.2, color=COLORS["training"], label="training")
    if report.evaluations:
        axes.plot(
            *zip(*report.evaluations, strict=True),
            marker="o",
            linewidth=2.2,
            color=COLORS["held out"],
            label="held out",
        )
    if report.held_out is not None and report.supervised:
        axes.axhline(report.held_out.before, linestyle="--", color=COLORS["base"], label="held out, base")
    axes.axvline(report.chosen, linestyle=":", color="black", label=f"chosen: step {report.chosen}")
    axes.set_ylabel(f"loss, {report.loss_unit}" if report.supervised else report.loss_unit, fontsize=15)
    if report.supervised:
        axes.set_ylim(bottom=0)
    axes.legend(fontsize=13)
    _plain(axes)


def _course(axes: Any, rates: Points, speeds: Points) -> None:
    """Learning rate on the left, tokens a second on the right."""
    for side, points, name, color in (
        (axes, rates, "learning rate", COLORS["rate"]),
        (axes.twinx(), speeds, "tokens/s", COLORS["speed"]),
    ):
        if points:
            side.plot(*zip(*points, strict=True), color=color, linewidth=1.8)
        side.set_ylabel(name, fontsize=15, color=color)
        side.set_ylim(bottom=0)
        _plain(side, grid=side is axes)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _plain(axes: Any, *, grid: bool = True) -> None:
    axes.tick_params(labelsize=13)
    axes.spines["top"].set_visible(False)
    if grid:
        axes.grid(alpha=0.3)
