"""Evaluate models with an engine of this command's own: the gateway without HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunery.gateway.jobs.model_names import is_tuned_name
from tunery.plugins.manager import Plugins
from tunery.registry import Base, Version
from tunery.registry.configuration.settings import JobsSettings, ServeSettings
from tunery.registry.errors import InvalidData, InvalidInput, NotFound, TuneryError
from tunery.registry.evals.records import EvalRun, Evaluation
from tunery.registry.home import Home
from tunery.registry.names import parse_composition
from tunery.registry.registry import Registry

if TYPE_CHECKING:
    from tunery.gateway.api.state import Gateway
    from tunery.plugins.evals.plan import RunPlan
    from tunery.registry.evals.store import NewRun

__all__ = ["EvalRequest", "evaluate"]

POLL_SECONDS = 0.5
SOURCE: dict[str, Any] = {"type": "custom", "item_schema": None}
Say = Callable[[str], None]


class EvalRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: rows of a file, graders as OpenAI writes them, a model and perhaps another one to compare it with.

    `base` is the base to serve; by default that of the first model which is a version.
    """

    data: Path
    graders: list[dict[str, Any]]
    model: str
    against: str | None = None
    sampling: dict[str, Any] = {}
    input_messages: dict[str, Any] | None = None
    base: str | None = None


def evaluate(
    request: EvalRequest,
    settings: ServeSettings,
    jobs: JobsSettings,
    *,
    home: Home,
    plugins: Plugins,
    say: Say,
    done: Callable[[int, int], None],
) -> EvalRun:
    """Do a run and return it when it has ended; `done` is called with the number of rows that are done, and of all.

    Raises InvalidInput or NotFound, before the engine starts, for what cannot be evaluated.
    """
    from tunery.plugins.bases.resolve import resolve_base
    from tunery.plugins.data.read.files import data_files

    if data_files(request.data) != [request.data]:
        raise InvalidData(f"--data {request.data} is a folder; name one file")
    with Registry.open(home) as registry:
        name = request.base or _base_of(registry, request) or settings.base
        base = resolve_base(name, registry=registry, plugins=plugins, say=say)
        settings = msgspec.structs.replace(settings, base=base.name)
        return asyncio.run(_evaluate(request, settings, jobs, base, registry=registry, plugins=plugins, done=done))


def _base_of(registry: Registry, request: EvalRequest) -> str | None:
    """The base of the first model that is a version, None where none is."""
    for model in (request.model, request.against):
        if model is not None:
            with contextlib.suppress(NotFound, InvalidInput, KeyError):
                return _version(registry, model).base
    named = [base.name for base in registry.bases()]
    return request.model if request.model in named else None


def _version(registry: Registry, model: str) -> Version:
    """The version, or the first one of a composition, that a name means; raise KeyError or as Registry.resolve."""
    if is_tuned_name(model):
        return registry.version(*registry.queue.names()[model])
    return registry.resolve(parse_composition(model)[0].reference)


async def _evaluate(
    request: EvalRequest,
    settings: ServeSettings,
    jobs: JobsSettings,
    base: Base,
    *,
    registry: Registry,
    plugins: Plugins,
    done: Callable[[int, int], None],
) -> EvalRun:
    from tunery.gateway.api.evaluations.planning import check_outputs
    from tunery.gateway.api.state import Gateway
    from tunery.gateway.engine.ipc.supervisor import SupervisedEngine
    from tunery.gateway.metrics.recorder import Metrics
    from tunery.gateway.resolver import Resolver
    from tunery.gateway.serve import engine_config
    from tunery.plugins.data.render.renderer import Renderer
    from tunery.plugins.evals.graders import read_graders

    renderer = Renderer(Path(base.path))
    engine = SupervisedEngine(engine_config(settings, base, home=registry.home, eos_ids=renderer.stop_ids))
    resolver = Resolver(registry, base)
    gateway = Gateway(settings, registry, engine, renderer, resolver, Metrics(), jobs=jobs, plugins=plugins)
    plan = _plan(request, gateway)
    new = await asyncio.to_thread(_check, request, plan, gateway)
    try:
        await engine.start()
        await asyncio.to_thread(renderer.prepare)
        ready = await engine.wait_ready()
        check_outputs(plan.sampling, read_graders(request.graders), context=ready.context_length)
        return await _run(new, request.graders, gateway, done=done)
    finally:
        gateway.workers.close()
        await engine.stop()


async def _run(
    new: NewRun, graders: list[dict[str, Any]], gateway: Gateway, *, done: Callable[[int, int], None]
) -> EvalRun:
    """Record the run, claimed by this process, and do it."""
    from tunery.gateway.evals.runner import EvalRunner

    evals, owner = gateway.registry.evals, f"command:{os.getpid()}"
    made = evals.create(tenant=gateway.jobs.tenant, name=new.name, source=SOURCE, criteria=graders)
    run = evals.add_run(msgspec.structs.replace(new, eval=made.id, owner=owner))
    try:
        await EvalRunner(gateway, owner=owner, at_once=gateway.settings.max_batch, alone=True).run(run, done=done)
        return await _ended(gateway.registry, run)
    except BaseException:
        with contextlib.suppress(TuneryError):
            evals.cancel(run.id)
        raise


def _draft(request: EvalRequest) -> Evaluation:
    """The evaluation before it is recorded."""
    return Evaluation(
        id="", tenant="", name=request.data.name, source=SOURCE, criteria=request.graders, created_at=0, updated_at=0
    )


def _plan(request: EvalRequest, gateway: Gateway) -> RunPlan:
    from tunery.gateway.api.evaluations.planning import Asked, plan_run
    from tunery.plugins.evals.graders import read_graders

    read_graders(request.graders, param="--grader")
    asked = Asked(
        model=request.model,
        against=request.against,
        sampling=request.sampling,
        input_messages=request.input_messages,
    )
    return plan_run(_draft(request), asked, resolver=gateway.resolver)


def _check(request: EvalRequest, plan: RunPlan, gateway: Gateway) -> NewRun:
    """The run of a plan, before it is recorded; raise InvalidInput for rows that do not fit."""
    from tunery.gateway.api.evaluations.planning import count_rows
    from tunery.registry.evals.store import NewRun

    name = request.data.name
    rows = count_rows(_draft(request), plan, request.data, name=name, formats=gateway.plugins.formats())
    return NewRun(
        eval="",
        name=name,
        request={"type": "completions", "source": {"type": "file_content", "content": []}, "model": request.model},
        plan=msgspec.to_builtins(plan),
        data_name=name,
        row_count=rows,
        base_digest=gateway.resolver.base.digest,
        path=request.data,
    )


async def _ended(registry: Registry, run: EvalRun) -> EvalRun:
    """The run when it has ended: a server may have gone on with it, if this process was stopped for a while."""
    while not (run := registry.evals.run(run.id)).ended:
        await asyncio.sleep(POLL_SECONDS)
    return run
