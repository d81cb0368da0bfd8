"""Bases that are no Llamas are trained, judged by the gates and published, or refused before the first step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.engine.models.random_bases import make_any_base
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.plugins.parameters import read_parameters
from tunery.plugins.training import TrainRequest, train
from tunery.registry import Version
from tunery.registry.errors import InvalidInput
from tunery.registry.registry import Registry

pytestmark = pytest.mark.usefixtures("imported", "no_picture", "forked_gates")
Run = Callable[..., Version]


@pytest.fixture
def run(registry: Registry, tiny_base_folder: Path, data: Path, tmp_path: Path) -> Run:
    """`run("gpt2", "lora")` trains a random base of that kind for one epoch and asks the gates."""

    def run(kind: str, method: str, **values: Any) -> Version:
        plugins, folder = load_plugins(), tmp_path / kind
        make_any_base(folder, kind, vocab_size=384, max_position_embeddings=2048)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tiny_base_folder / name, folder / name)
        base = resolve_base(str(folder), registry=registry, plugins=plugins, name=kind)
        parameters = {"precision": "float32", "batch_size": 8, "epochs": 1, "eval_fraction": 0.2, **values}
        request = TrainRequest(
            adapter="acme/other", trainer=method, base=base.digest, data=(str(data),), parameters=parameters, force=True
        )
        chosen = read_parameters(plugins.trainer(method).parameters, parameters)
        return train(request, chosen, registry=registry, plugins=plugins, on_event=lambda event: None)

    return run


@pytest.mark.parametrize(("kind", "method"), [("gpt2", "lora"), ("gemma2", "lora"), ("mixtral", "qlora")])
def test_what_is_trained_is_what_is_served(run: Run, kind: str, method: str) -> None:
    gates = {gate["name"]: gate for gate in run(kind, method).manifest["gates"]}
    for name in ("finite", "changed", "served"):
        assert gates[name]["passed"], gates[name]["message"]


@pytest.mark.parametrize(
    ("kind", "method", "values", "what"),
    [
        ("mixtral", "full", {}, r"would change model\.layers\.0\.mlp\.\w+\.\w+, which is not served"),
        ("gpt2", "full", {}, r"would change transformer\.h\.0\.attn\.c_attn\.weight, which is not served"),
        (
            "mixtral",
            "lora",
            {"target_modules": ("q_proj", "w1", "w3")},
            "target_modules names w1, w3: .*served on k_proj, o_proj, q_proj, v_proj and",
        ),
    ],
)
def test_what_would_not_be_served_is_not_trained(
    run: Run, registry: Registry, kind: str, method: str, values: dict[str, Any], what: str
) -> None:
    with pytest.raises(InvalidInput, match=what):
        run(kind, method, **values)
    assert not registry.versions()


def test_rows_longer_than_what_is_served_are_refused(run: Run, registry: Registry) -> None:
    with pytest.raises(InvalidInput, match=r"at most 64 tokens.* set max_length=64 or less"):
        run("phimoe", "lora")
    assert not registry.versions()
