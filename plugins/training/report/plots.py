"""Owns the picture of a run's losses. Without matplotlib (the extra `plots`) there is none, and it says so; nothing else imports it."""

from __future__ import annotations

from pathlib import Path

from tunery.plugins.training.report import Report

__all__ = ["draw"]


def draw(report: Report, path: Path) -> str | None:
    """Write a PNG of the training and held-out losses by step; what to do instead where it cannot be drawn."""
    if not report.curve:
        return "There is no picture: no step was recorded."
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return "There is no picture of the losses: it needs matplotlib (pip install 'tunery[plots]')."
    figure = Figure(figsize=(7, 4.2), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([step for step, _ in report.curve], [loss for _, loss in report.curve], linewidth=1, label="training")
    if report.evaluations:
        steps, losses = zip(*report.evaluations, strict=True)
        axes.plot(steps, losses, marker="o", label="held out")
    if report.held_out is not None and report.supervised:
        axes.axhline(report.held_out.before, linestyle="--", color="gray", label="held out, base")
    axes.axvline(report.chosen, linestyle=":", color="black", label=f"chosen: step {report.chosen}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per trained token" if report.supervised else "loss, the trainer's own")
    if report.supervised:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    # No date and no program: the same run gives the same picture.
    figure.savefig(path, format="png", metadata={"Software": None})
    return None
