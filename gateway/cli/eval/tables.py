"""What a run says, as tables."""

from __future__ import annotations

import click
import msgspec

from tunery.gateway.cli.terminal.tables import print_table
from tunery.plugins.evals.statistics import Comparison, GraderResult, ModelResult, RunSummary

__all__ = ["pass_rate_text", "print_summary", "summary_of"]


def print_summary(summary: RunSummary) -> None:
    """Every model by grader, and the differences."""
    rows = [
        (model.name, grader.name, _interval(grader.mean, grader.low, grader.high), _passed(grader), grader.errored)
        for model in summary.models
        for grader in model.graders
    ]
    print_table(("model", "grader", "mean (95 %)", "passed", "errors"), rows, empty="no results")
    for model in summary.models:
        click.echo(f"{model.name}: passes every grader {pass_rate_text(model)}")
    if summary.comparison:
        first, second = (model.name for model in summary.models)
        click.echo(f"{first} less {second}, paired by row:")
        header = ("grader", "difference (95 %)", "rows", "both pass", f"only {first}", f"only {second}", "neither", "p")
        print_table(header, [_difference(each) for each in summary.comparison], empty="no rows")


def pass_rate_text(model: ModelResult) -> str:
    """Such as `83.3 % (55.2 to 95.3 %) of 12 rows`."""
    rows = model.passed + model.failed
    errors = f", {model.errored} without a result" if model.errored else ""
    if model.pass_rate is None or model.low is None or model.high is None:
        return f"unknown{errors}"
    share, low, high = (f"{100 * each:.1f}" for each in (model.pass_rate, model.low, model.high))
    return f"{share} % ({low} to {high} %) of {rows} rows{errors}"


def _passed(grader: GraderResult) -> str:
    return f"{grader.passed}/{grader.rows}"


def _interval(value: float | None, low: float | None, high: float | None, *, sign: str = "") -> str:
    if value is None or low is None or high is None:
        return "-"
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _difference(each: Comparison) -> tuple[object, ...]:
    interval = _interval(each.difference, each.low, each.high, sign="+")
    counts = (each.both, each.only_first, each.only_second, each.neither)
    return (each.name, interval, each.rows, *counts, f"{each.p:.3g}")


def summary_of(raw: object) -> RunSummary:
    """A stored summary."""
    return msgspec.convert(raw, RunSummary)
