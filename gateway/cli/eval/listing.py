"""`tunery eval list` and `show`: what was measured, and what is being measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table, when
from tunery.gateway.python.home import open_registry

if TYPE_CHECKING:
    from tunery.registry.evals.records import EvalRun

__all__ = ["COMMANDS"]

MOST = 1000


@click.command("list")
@as_json
def list_runs(as_json: bool) -> None:
    """List runs, newest first."""
    with open_registry() as registry:
        runs, _ = registry.evals.runs(eval_id=None, limit=MOST)
    if as_json:
        print_json(runs)
        return
    rows = [(run.id, run.state, run.data_name, *_models(run), _result(run), when(run.created_at)) for run in runs]
    header = ("run", "state", "data", "model", "against", "result", "made")
    print_table(header, rows, empty="no runs yet: tunery eval run")


@click.command("show")
@click.argument("run_id", metavar="RUN")
@as_json
def show_run(run_id: str, as_json: bool) -> None:
    """Show one run: what was measured, and what it says."""
    with open_registry() as registry:
        run = registry.evals.run(run_id)
        counts = registry.evals.counts(run_id)
    if as_json:
        print_json(msgspec.to_builtins(run) | {"counts": counts})
        return
    from tunery.gateway.cli.eval.tables import print_summary, summary_of

    model, against = _models(run)
    click.echo(f"{run.id}  {run.state}  {when(run.created_at)}")
    click.echo(f"{model}{f' against {against}' if against != '-' else ''} on {run.data_name} ({run.data_sha256[:12]})")
    click.echo(f"{sum(counts.values())} of {run.row_count} rows done")
    if run.error is not None:
        click.echo(f"error: {run.error}")
    if run.summary is not None:
        print_summary(summary_of(run.summary))


def _models(run: EvalRun) -> tuple[str, str]:
    """The exact names of the model and of the one that it is compared with."""
    references = [model["reference"] for model in run.plan["models"]]
    return references[0], references[1] if len(references) > 1 else "-"


def _result(run: EvalRun) -> str:
    if run.summary is None:
        return (run.error or "-").splitlines()[0][:60]
    from tunery.gateway.cli.eval.tables import pass_rate_text, summary_of

    return f"passes {pass_rate_text(summary_of(run.summary).models[0])}"


COMMANDS = (list_runs, show_run)
