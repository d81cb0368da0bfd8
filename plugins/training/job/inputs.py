"""Owns what a job was asked for, and reading all of it once: base, parent, rows. Refuses a parent of another base,
rows that a check calls an error, and no rows."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.bases.architectures import exact_context
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.training.examples.corpus import Corpus, read_corpus
from tunery.plugins.training.job.data_check import DataCheck, check_rows
from tunery.registry import Base, Version
from tunery.registry.base_files import require_sound
from tunery.registry.errors import InvalidInput
from tunery.registry.peft.layout import CONFIG
from tunery.registry.registry import Registry

__all__ = ["Inputs", "TrainRequest", "adapter_config", "read_inputs"]


class TrainRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for; kept with the job so that it can be resumed. Paths are absolute; errors of the rules in `allow` pass.

    `force` publishes what fails a gate, and is recorded.
    """

    adapter: str
    trainer: str
    base: str
    data: tuple[str, ...]
    validation: str | None = None
    parent: str | None = None
    alias: str | None = None
    device: str = "cpu"
    parameters: dict[str, Any] = {}
    allow: tuple[str, ...] = ()
    force: bool = False
    actor: str = "unknown"


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """A request with everything it names; `template` is the sha256 of the base's chat template, if it has one, and `now` the time
    that it was told. `checked` is None where rows were not checked again."""

    request: TrainRequest
    base: Base
    parent: Version | None
    corpus: Corpus
    template: str | None
    template_text: str | None
    now: datetime
    checked: DataCheck | None = None


def read_inputs(
    request: TrainRequest,
    parameters: TrainingParameters,
    *,
    registry: Registry,
    plugins: Plugins,
    check: bool = False,
    now: datetime | None = None,
) -> Inputs:
    """Look up the base and the parent, check every row if asked to, and read and render every row.

    `now` is when a template that asks for the date is told it is: by default now; the first time's where a job goes on.
    """
    base = registry.base(request.base)
    require_sound(base, registry.home)
    _check_context(base, parameters.max_length)
    parent = _parent(request, registry, base)
    data = [Path(path) for path in request.data]
    validation = Path(request.validation) if request.validation else None
    checked = None
    if check:
        checked = check_rows(
            data,
            validation,
            base=base,
            max_length=parameters.max_length,
            allow=request.allow,
            plugins=plugins,
        )
    told = now or datetime.now().replace(microsecond=0)
    renderer = Renderer(Path(base.path), now=lambda: told)
    corpus = read_corpus(
        data,
        validation,
        formats=plugins.formats(),
        renderer=renderer,
        max_length=parameters.max_length,
        eval_fraction=parameters.eval_fraction,
        seed=parameters.seed,
        preferences="preference" in plugins.trainer(request.trainer).methods,
    )
    if not corpus.train:
        raise InvalidInput("everything was held out and nothing is left to train on; lower eval_fraction")
    return Inputs(
        request=request,
        base=base,
        parent=parent,
        corpus=corpus,
        template=renderer.template_sha256,
        template_text=renderer.template.source if renderer.template else None,
        now=told,
        checked=checked,
    )


def _check_context(base: Base, max_length: int) -> None:
    """Refuse rows that are longer than what the base can be served with."""
    try:
        limit = exact_context(json.loads((Path(base.path) / "config.json").read_bytes()))
    except (OSError, ValueError):
        return
    if limit is not None and max_length > limit:
        raise InvalidInput(
            f"{base.name} is served with at most {limit} tokens, beyond which its positions or windows change; set max_length={limit} "
            "or less",
            code="invalid_parameter",
        )


def adapter_config(registry: Registry, version: Version | None) -> dict[str, Any] | None:
    """The adapter configuration of a version to continue from."""
    if version is None:
        return None
    config: dict[str, Any] = msgspec.json.decode(registry.files(version)[CONFIG].read_bytes())
    return config


def _parent(request: TrainRequest, registry: Registry, base: Base) -> Version | None:
    parent = registry.resolve(request.parent) if request.parent else None
    if parent is not None and parent.base_digest != base.digest:
        raise InvalidInput(
            f"{parent.name} was trained on {parent.base} ({parent.base_digest[:12]}), not on {base.name} "
            f"({base.digest[:12]}); continue on the same base",
            code="wrong_base",
        )
    return parent
