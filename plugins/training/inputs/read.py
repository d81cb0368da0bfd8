"""Read everything that a training request names, once: the base, the parent version, and the rows,
checked, split and rendered."""

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
from tunery.plugins.training.inputs.data_check import DataCheck, check_rows
from tunery.plugins.training.inputs.request import TrainRequest
from tunery.registry import Base, Version
from tunery.registry.base_files import require_sound
from tunery.registry.errors import InvalidInput
from tunery.registry.peft.layout import CONFIG
from tunery.registry.registry import Registry

__all__ = ["Inputs", "adapter_config", "read_inputs"]


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """A request with everything it names.

    `template` is the sha256 of the base's chat template, if it has one; `now` is the current time as the template sees
    it. `checked` is None when the rows were not checked again.
    """

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
    """Look up the base and the parent, run the data checks if `check`, then read, render and split the rows.

    `now` is the current time as the chat template sees it, the time of the first run when a job is resumed; the clock
    by default. Raise InvalidInput when the parent has another base or no row is left to train on, InvalidData when a
    check finds an error.
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
    template_time = now or datetime.now().replace(microsecond=0)
    renderer = Renderer(Path(base.path), now=lambda: template_time)
    corpus = read_corpus(
        data,
        validation,
        parameters,
        formats=plugins.formats(),
        renderer=renderer,
        preferences=plugins.trainer(request.trainer).learns_from_pairs,
    )
    if not corpus.train:
        raise InvalidInput("every row is held out and none is left to train on; lower eval_fraction")
    return Inputs(
        request=request,
        base=base,
        parent=parent,
        corpus=corpus,
        template=renderer.template_sha256,
        template_text=renderer.template.source if renderer.template else None,
        now=template_time,
        checked=checked,
    )


def _check_context(base: Base, max_length: int) -> None:
    """Refuse a `max_length` beyond the context that the base is served with."""
    try:
        limit = exact_context(json.loads((Path(base.path) / "config.json").read_bytes()))
    except (OSError, ValueError):
        return
    if limit is not None and max_length > limit:
        raise InvalidInput(
            f"{base.name} is served with at most {limit} tokens of context, beyond which its positions or windows change; "
            f"set max_length={limit} or less",
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
