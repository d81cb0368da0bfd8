"""From what a client asks for to a run that any server on the same base can do: rows read, versions exact, fields known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tunery.gateway.jobs.model_names import is_checkpoint_name
from tunery.gateway.resolver import Resolver, Target
from tunery.gateway.tenancy.principal import Principal
from tunery.plugins.evals.grader_types import ScoreModel
from tunery.plugins.evals.graders import CompiledGrader, read_graders
from tunery.plugins.evals.items import Item, Prompts, read_items
from tunery.plugins.evals.json_validity import JsonValidity
from tunery.plugins.evals.plan import Model, RunPlan
from tunery.plugins.evals.sampling import check_output_fits, read_sampling
from tunery.plugins.hookspecs import FormatInfo
from tunery.registry.errors import InvalidData, InvalidInput, NotFound
from tunery.registry.evals.records import Evaluation

__all__ = ["Asked", "Work", "check_outputs", "count_rows", "plan_run", "run_work"]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: `model`, `against` another one, how to sample both and what to ask."""

    model: str
    against: str | None = None
    sampling: dict[str, Any] | None = None
    input_messages: dict[str, Any] | None = None


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a run needs: its rows, what to ask for each, and the graders."""

    items: list[Item]
    prompts: Prompts
    graders: list[CompiledGrader]


def plan_run(evaluation: Evaluation, asked: Asked, *, resolver: Resolver, by: Principal | None = None) -> RunPlan:
    """The plan of a run, with the versions that its models mean now; for the event loop, as the resolver is.

    Raises InvalidInput or NotFound for a model that does not exist, or sampling that is not supported.
    """
    named = ((asked.model, "data_source.model"), (asked.against, "tunery.against"))
    judges = dict.fromkeys(each["model"] for each in evaluation.criteria if isinstance(each.get("model"), str))
    return RunPlan(
        models=[_exact(resolver, model, param=param, by=by) for model, param in named if model is not None],
        judges={name: _exact(resolver, name, param="testing_criteria", by=by) for name in judges},
        sampling=read_sampling(asked.sampling, param="data_source.sampling_params"),
        input_messages=asked.input_messages,
    )


def check_outputs(sampling: Mapping[str, Any], graders: list[CompiledGrader], *, context: int) -> None:
    """Raise InvalidInput where the models, or a judge, are asked for more tokens than any answer of `context` tokens has."""
    check_output_fits(dict(sampling), context=context, param="data_source.sampling_params")
    for at, each in enumerate(graders):
        if isinstance(each.grader, ScoreModel):
            param = f"testing_criteria[{at}].sampling_params"
            check_output_fits(each.grader.sampling, context=context, param=param)


def count_rows(
    evaluation: Evaluation, plan: RunPlan, path: Path, *, name: str, formats: Mapping[str, FormatInfo]
) -> int:
    """How many rows a run has. Raises InvalidInput for a row, or a field of a template, that it does not have, before any
    model is asked."""
    work = run_work(evaluation, plan, path, name=name, formats=formats)
    _check_fields(work, name)
    return len(work.items)


def run_work(
    evaluation: Evaluation, plan: RunPlan, path: Path, *, name: str, formats: Mapping[str, FormatInfo]
) -> Work:
    """What a run needs, read again from what is stored."""
    schema = evaluation.source.get("item_schema")
    valid = None if schema is None else JsonValidity(schema, param="data_source_config.item_schema")
    return Work(
        items=read_items(path, formats=formats, schema=valid, name=name),
        prompts=Prompts(plan.input_messages),
        graders=read_graders(evaluation.criteria),
    )


def _exact(resolver: Resolver, name: str, *, param: str, by: Principal | None) -> Model:
    """What a model's name means now, by version; raise NotFound or InvalidInput as Resolver.resolve."""
    try:
        target = resolver.resolve(name, by=by)
    except (InvalidInput, NotFound) as error:
        raise type(error)(error.message, code=error.code, param=param) from error
    if is_checkpoint_name(name):
        return Model(name=name, reference=name)
    version = target.version
    # One version at another weight is not that version.
    if version is None or target.composition[0].weight != 1.0:
        return Model(name=name, reference=_reference(target))
    return Model(
        name=name, reference=version.name, adapter=version.adapter, number=version.number, digest=version.digest
    )


def _reference(target: Target) -> str:
    """The base's name, or every version of a composition with its weight."""
    if not target.composition:
        return target.base.name
    return "+".join(f"{part.source.name}@{part.source.number}:{part.weight!r}" for part in target.composition)


def _check_fields(work: Work, name: str) -> None:
    """Raise InvalidData for the first row that lacks a field of a template."""
    for item in work.items:
        try:
            work.prompts.messages(item)
            for grader in work.graders:
                grader.check_item(item.fields)
        except InvalidInput as error:
            raise InvalidData(f"{name}:{item.line}: {error.message}", code=error.code) from error
