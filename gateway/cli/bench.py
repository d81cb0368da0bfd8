"""`tunery bench`: measure serving and training on this machine, on workloads other systems can be measured on too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from tunery.gateway.bench.settings import (
    EngineSettings,
    GatewaySettings,
    NeighbourSettings,
    TrainingRunSettings,
    Workload,
)
from tunery.gateway.cli.terminal.context import plugins, print_json, say
from tunery.gateway.cli.terminal.options import as_json, parse_settings, read_options, setting_options
from tunery.gateway.python.home import open_registry
from tunery.plugins.runtime.compute import prepare_compute
from tunery.plugins.runtime.device import resolve_device
from tunery.plugins.runtime.logging import silence_libraries
from tunery.registry.errors import InvalidInput
from tunery.registry.home import Home

if TYPE_CHECKING:
    from tunery.gateway.engine.config import EngineConfig

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure serving and training on this machine."""


@bench.command("serve")
@setting_options(EngineSettings)
@setting_options(Workload)
@click.option("--suite", is_flag=True, help="Every figure of docs/performance.md instead of one workload; minutes.")
@click.option(
    "--peers",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="With --suite: other systems' figures, a JSON object a line, to print ratios to.",
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="With --suite: draw this PNG.")
@as_json
def serve(suite: bool, peers: Path | None, plot: Path | None, as_json: bool, **given: Any) -> None:
    """Decode and prefill speed of a batch whose requests use different adapters."""
    if not suite and (peers or plot):
        raise InvalidInput("--peers and --plot go with --suite")
    settings, workload = read_options(EngineSettings, given), read_options(Workload, given)
    prepare_compute(settings.threads)
    resolve_device(settings.device)
    config = _engine_config(settings, max_batch=workload.batch)
    if suite:
        _suite(config, peers, plot, as_json)
        return
    from tunery.gateway.bench.workload import bench_serve

    _print(msgspec.to_builtins(bench_serve(config, workload)), as_json)


def _engine_config(settings: EngineSettings, *, max_batch: int) -> EngineConfig:
    from tunery.gateway.engine.config import EngineConfig
    from tunery.plugins.bases.resolve import resolve_base

    with open_registry() as registry:
        base = resolve_base(settings.base, registry=registry, plugins=plugins(), say=say)
    return EngineConfig(
        base_folder=base.path,
        base_name=base.name,
        base_digest=base.digest,
        cache_folder=str(Home.from_env().packed),
        quant=settings.quant,
        dtype=settings.dtype,
        device=settings.device,
        threads=settings.threads,
        max_batch=max_batch,
        adapter_budget=1 << 40,
    )


def _suite(config: EngineConfig, peers: Path | None, plot: Path | None, as_json: bool) -> None:
    """Measure every row, judge, draw and print."""
    from tunery.gateway.bench import report
    from tunery.gateway.bench.machine import describe
    from tunery.gateway.bench.suite import run_suite

    others = report.read_peers(peers) if peers else []
    rows = run_suite(config, say)
    bars = report.judge(rows, others)
    if plot:
        report.draw(rows, others, plot)
    tables = f"{report.rows_table(rows)}\n\n{report.bars_table(bars)}"
    click.echo(report.as_json(rows, bars, describe()) if as_json else tables)


@bench.command("train")
@setting_options(TrainingRunSettings)
@click.option("--method", "methods", default=("lora",), multiple=True, show_default=True, help="A trainer; repeatable.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="A file of examples.")
@click.option("--held-out", type=click.Path(path_type=Path, exists=True), help="Rows to take a loss on.")
@click.option("--set", "parameters", multiple=True, metavar="NAME=VALUE", help="A parameter of the trainer.")
@click.option("--peer", metavar="COMMAND", help="Another system's command, measured in the same run and compared with.")
@as_json
def train(
    methods: tuple[str, ...],
    data: Path,
    held_out: Path | None,
    parameters: tuple[str, ...],
    peer: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Training speed in useful tokens (padding not counted) per second, and peak memory."""
    settings = read_options(TrainingRunSettings, given)
    alone = peer is None and len(methods) == 1
    # Other systems are measured in processes of their own, which must not inherit what is set for this one.
    prepare_compute(settings.threads) if alone else silence_libraries()
    device = resolve_device(settings.device)
    from tunery.plugins.bases.resolve import resolve_base

    loaded = plugins()
    with open_registry() as registry:
        base = resolve_base(settings.base, registry=registry, plugins=loaded, say=say)
    values: dict[str, Any] = {**parse_settings(parameters), "max_steps": settings.steps}
    if alone:
        from tunery.plugins.training.bench import bench_train

        _print(bench_train(base, methods[0], values, data, held_out, plugins=loaded, device=device), as_json)
        return
    from tunery.gateway.bench.machine import describe
    from tunery.gateway.bench.training import TrainingWorkload, compare, table
    from tunery.plugins.parameters import read_parameters

    workload = TrainingWorkload(
        base=base.digest,
        folder=base.path,
        data=data,
        held_out=held_out,
        steps=settings.steps,
        batch=read_parameters(loaded.trainer(methods[0]).parameters, values).batch_size,
        settings=parameters,
        device=device,
        threads=settings.threads,
    )
    figures = compare(workload, methods, peer, say)
    if as_json:
        print_json({"figures": figures, "machine": describe()})
    else:
        click.echo(table(figures, peer=peer is not None))


@bench.command("neighbours")
@setting_options(NeighbourSettings)
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True, help="Rows to train on."
)
@as_json
def neighbours(data: Path, as_json: bool, **given: Any) -> None:
    """What others cost: decoding and training beside busy processes, streams beside huge prompts and beside a job."""
    settings = read_options(NeighbourSettings, given)
    from tunery.gateway.bench import report
    from tunery.gateway.bench.machine import describe
    from tunery.gateway.bench.neighbours import measure_neighbours
    from tunery.plugins.bases.resolve import resolve_base

    with open_registry() as registry:
        base = resolve_base(settings.base, registry=registry, plugins=plugins(), say=say)
    rows = measure_neighbours(base, data, busy=settings.busy, say=say)
    bars = report.judge(rows, [])
    tables = f"{report.rows_table(rows)}\n\n{report.bars_table(bars)}"
    click.echo(report.as_json(rows, bars, describe()) if as_json else tables)


@bench.command("gateway")
@setting_options(GatewaySettings)
@as_json
def gateway(as_json: bool, **given: Any) -> None:
    """What the gateway itself takes, in front of an engine that answers at once: latency, requests and tokens a second."""
    settings = read_options(GatewaySettings, given)
    prepare_compute(0)
    from tunery.gateway.bench import report
    from tunery.gateway.bench.gateway import measure_gateway
    from tunery.gateway.bench.machine import describe
    from tunery.plugins.bases.resolve import resolve_base

    with open_registry() as registry:
        base = resolve_base(settings.base, registry=registry, plugins=plugins(), say=say)
    rows = measure_gateway(base, say)
    bars = report.judge(rows, [])
    tables = f"{report.rows_table(rows)}\n\n{report.bars_table(bars)}"
    click.echo(report.as_json(rows, bars, describe()) if as_json else tables)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    for name, value in result.items():
        click.echo(f"{name:16} {value}")
