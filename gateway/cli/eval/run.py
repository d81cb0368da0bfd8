"""`tunery eval run`: measure a model on held-out rows, by itself or against another one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.context import plugins, print_json, say
from tunery.gateway.cli.terminal.options import as_json, server_key
from tunery.plugins.evals.short_forms import SHORT_FORMS, grader_from_text
from tunery.registry.configuration.settings import read_settings
from tunery.registry.errors import InvalidInput, JobCancelled, TuneryError
from tunery.registry.home import Home

__all__ = ["run_eval"]


class _Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has ended, wherever it ran."""

    run: str
    eval: str
    state: str
    model: str
    against: str | None
    summary: dict[str, Any] | None
    error: str | None
    code: str | None


@click.command("run")
@click.argument("model")
@click.option("--against", help="The model to compare MODEL with, on the same rows.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The held-out rows.")
@click.option(
    "--grader", "graders", multiple=True, required=True, help=f"A JSON file of graders, or one of: {SHORT_FORMS}."
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of an answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of sampling.")
@click.option(
    "--prompt", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A JSON file of messages with {{item.FIELD}} in them, to ask instead of a row's own.",
)  # fmt: skip
@click.option("--base", help="The base to serve.  [default: that of MODEL]")
@click.option("--server", help="Let the server at this URL do it, instead of an engine of this command's own.")
@server_key
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the result of each row here.")
@as_json
def run_eval(
    model: str,
    against: str | None,
    data: Path,
    graders: tuple[str, ...],
    prompt: Path | None,
    base: str | None,
    server: str | None,
    key: str | None,
    out: Path | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Measure MODEL, a version or a base, on held-out rows.

    Each row is answered once, greedily unless --temperature says otherwise, and every grader gives the answer a score
    from 0 to 1. Rows are those of training files, whose last answer is {{item.reference}}, or OpenAI's {"item": {...}}.
    """
    criteria = [grader for text in graders for grader in grader_from_text(text)]
    asked = {
        "model": model,
        "sampling_params": _given(sampling),
        "input_messages": None if prompt is None else {"type": "template", "template": _messages(prompt)},
    }
    if server is not None:
        if base is not None:
            raise InvalidInput("--base goes without --server: a server has its own")
        outcome = _by_server(server, key, data, criteria, asked, against, out)
    else:
        outcome = _here(data, criteria, asked, against, base, out)
    _print(outcome, as_json)


def _given(sampling: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in (
            ("temperature", sampling["temperature"]),
            ("seed", sampling["seed"]),
            ("max_completion_tokens", sampling["max_tokens"]),
        )
        if value is not None
    }


def _messages(path: Path) -> list[Any]:
    try:
        messages = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"--prompt {path} is not JSON: {error}") from error
    if not isinstance(messages, list):
        raise InvalidInput(f"--prompt {path} must be a list of messages")
    return messages


def _here(
    data: Path,
    criteria: list[dict[str, Any]],
    asked: dict[str, Any],
    against: str | None,
    base: str | None,
    out: Path | None,
) -> _Outcome:
    """Run it with an engine of this command's own, configured as `tunery serve` is."""
    from tunery.gateway.python.evaluating import EvalRequest, evaluate
    from tunery.gateway.python.home import open_registry
    from tunery.plugins.runtime.device import check_device

    home = Home.from_env()
    settings = read_settings(home.root)
    check_device(settings.serve.device)
    request = EvalRequest(
        data=data,
        graders=criteria,
        model=asked["model"],
        against=against,
        sampling=asked["sampling_params"],
        input_messages=asked["input_messages"],
        base=base,
    )
    try:
        run = evaluate(request, settings.serve, settings.jobs, home=home, plugins=plugins(), say=say, done=_progress())
    except KeyboardInterrupt:
        raise JobCancelled("interrupted; rows that were done are in `tunery eval list`") from None
    if out is not None:
        with open_registry() as registry:
            _write(out, (item.data for item in registry.evals.all_items(run.id)))
    references = [model["reference"] for model in run.plan["models"]]
    return _Outcome(
        run=run.id,
        eval=run.eval,
        state=run.state,
        model=references[0],
        against=references[1] if against else None,
        summary=run.summary,
        error=run.error,
        code=run.code,
    )


def _by_server(
    server: str,
    key: str | None,
    data: Path,
    criteria: list[dict[str, Any]],
    asked: dict[str, Any],
    against: str | None,
    out: Path | None,
) -> _Outcome:
    from tunery.gateway.cli.eval.remote import RemoteEval
    from tunery.plugins.data.read.files import data_files

    if data_files(data) != [data]:
        raise InvalidInput(f"--data {data}: a folder cannot be uploaded; name one file")
    source = asked | {"type": "completions"}
    with RemoteEval(server, key=key) as remote:
        run = remote.run(data, graders=criteria, source=source, against=against, done=_progress())
        if out is not None:
            _write(out, remote.items(run))
    details, error = run["tunery"], run["error"] or {}
    return _Outcome(
        run=run["id"],
        eval=run["eval_id"],
        state=run["status"],
        model=details["model"],
        against=details["against"],
        summary=details["summary"],
        error=error.get("message"),
        code=error.get("code"),
    )


def _progress() -> Callable[[int, int], None]:
    """Says every tenth of the rows."""
    said = -1

    def show(done: int, of: int) -> None:
        nonlocal said
        tenth = 10 * done // max(of, 1)
        if tenth > said:
            said = tenth
            say(f"{done}/{of} rows")

    return show


def _write(path: Path, items: Iterable[dict[str, Any]]) -> None:
    with path.open("wb") as file:
        for item in items:
            file.write(msgspec.json.encode(item) + b"\n")


def _print(outcome: _Outcome, as_json: bool) -> None:
    if as_json:
        print_json(outcome)
    if outcome.summary is None:
        raise TuneryError(f"{outcome.run} is {outcome.state}: {outcome.error or 'it was stopped'}", code=outcome.code)
    if not as_json:
        from tunery.gateway.cli.eval.tables import print_summary, summary_of

        print_summary(summary_of(outcome.summary))
        click.echo(f"run {outcome.run}")
