"""A tiny base, a file of rows it can learn, and training on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import EventSink, JobEvent
from tunery.plugins.parameters import read_parameters
from tunery.plugins.testing import write_rows
from tunery.registry import Base, Version
from tunery.registry.registry import Registry

Train = Callable[..., Version]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 40)


@pytest.fixture
def events() -> list[JobEvent]:
    """What the last `train` reported."""
    return []


@pytest.fixture
def base_with(registry: Registry, tiny_base_folder: Path, tmp_path: Path) -> Callable[..., Base]:
    """`base_with(template, eos_token=None)` is the tiny base with another chat template, and other
    settings of its tokenizer."""
    from tunery.plugins.bases.resolve import resolve_base

    def base_with(template: str, **changed: Any) -> Base:
        folder = tmp_path / "other-base"
        shutil.copytree(tiny_base_folder, folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template} | changed))
        return resolve_base(str(folder), registry=registry, plugins=load_plugins(allow=()), name="other")

    return base_with


@pytest.fixture
def train(registry: Registry, tiny_base: Base, data: Path, events: list[JobEvent], no_picture: None) -> Train:
    """`train("lora", epochs=1)` trains acme/tiny and returns the version; `gates` asks them, whatever they find.

    Reports have no picture, unless the test overrides `no_picture`.
    """
    from tunery.plugins.training import TrainRequest
    from tunery.plugins.training import train as run

    def train(
        method: str,
        *,
        adapter: str = "acme/tiny",
        files: tuple[Path, ...] = (),
        on_event: EventSink | None = None,
        parent: str | None = None,
        alias: str | None = None,
        validation: Path | None = None,
        allow: tuple[str, ...] = (),
        base: Base | None = None,
        gates: bool = False,
        **parameters: Any,
    ) -> Version:
        plugins = load_plugins(allow=(), without=() if gates else ("gates",))
        values = {"precision": "float32", "learning_rate": 0.01, "batch_size": 4, "eval_fraction": 0.2, **parameters}
        request = TrainRequest(
            adapter=adapter,
            trainer=method,
            base=(base or tiny_base).digest,
            data=tuple(str(path) for path in files or (data,)),
            validation=str(validation) if validation else None,
            parent=parent,
            alias=alias,
            allow=allow,
            force=gates,
            parameters=values,
        )
        chosen = read_parameters(plugins.trainer(method).parameters, values)
        return run(request, chosen, registry=registry, plugins=plugins, on_event=on_event or events.append)

    return train
