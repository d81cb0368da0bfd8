"""Owns what a job was asked for, and reading all of it once: base, parent, rows. Refuses a parent of another base, and no rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.data.renderer import Renderer
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.training.examples import Corpus, read_corpus
from tunery.registry import Base, Version
from tunery.registry.errors import InvalidInput
from tunery.registry.registry import Registry

__all__ = ["Inputs", "TrainRequest", "read_inputs"]


class TrainRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for; kept with the job so that it can be resumed. Paths are absolute."""

    adapter: str
    trainer: str
    base: str
    data: tuple[str, ...]
    validation: str | None = None
    parent: str | None = None
    alias: str | None = None
    device: str = "cpu"
    parameters: dict[str, Any] = {}
    actor: str = "unknown"


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """A request with everything it names; `template` is the sha256 of the base's chat template, if it has one."""

    request: TrainRequest
    base: Base
    parent: Version | None
    corpus: Corpus
    template: str | None


def read_inputs(
    request: TrainRequest, parameters: TrainingParameters, *, registry: Registry, plugins: Plugins
) -> Inputs:
    """Look up the base and the parent, and read and render every row."""
    base = registry.base(request.base)
    parent = _parent(request, registry, base)
    renderer = Renderer(Path(base.path))
    corpus = read_corpus(
        [Path(path) for path in request.data],
        Path(request.validation) if request.validation else None,
        formats=plugins.formats(),
        renderer=renderer,
        max_length=parameters.max_length,
        eval_fraction=parameters.eval_fraction,
        seed=parameters.seed,
    )
    if not corpus.train:
        raise InvalidInput("everything was held out and nothing is left to train on; lower eval_fraction")
    return Inputs(request=request, base=base, parent=parent, corpus=corpus, template=renderer.template_sha256)


def _parent(request: TrainRequest, registry: Registry, base: Base) -> Version | None:
    parent = registry.resolve(request.parent) if request.parent else None
    if parent is not None and parent.base_digest != base.digest:
        raise InvalidInput(
            f"{parent.name} was trained on {parent.base} ({parent.base_digest[:12]}), not on {base.name} "
            f"({base.digest[:12]}); continue on the same base",
            code="wrong_base",
        )
    return parent
