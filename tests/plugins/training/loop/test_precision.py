"""Weights that move less than bfloat16 resolves: they are trained, measured, saved and served as what they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.plugins.training.conftest import Train
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import EventSink, JobEvent, StepCompleted
from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.training import resume
from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.examples.corpus import read_corpus
from tunery.plugins.training.loop.rounding import StochasticRounding
from tunery.plugins.training.objectives.objective import StepLoss, Supervised
from tunery.registry import Base
from tunery.registry.hub.incoming import Destination, import_folder
from tunery.registry.registry import Registry

SMALL_STEPS: dict[str, Any] = {
    "precision": "bfloat16", "learning_rate": 3e-5, "epochs": 4, "schedule": "constant", "warmup": 0.0, "patience": 0,
}  # fmt: skip
"""Steps far smaller than what bfloat16 resolves in the head of the tiny base, where weights are about 0.2."""
SAME = 2e-4
"""Nats a token between two ways to compute the same float32 model."""


@pytest.fixture
def narrow_base(registry: Registry, tiny_base_folder: Path, tmp_path: Path) -> Base:
    """The tiny base as bases are published: its weights are bfloat16 numbers, so half a unit must
    be crossed to be seen."""
    folder = tmp_path / "narrow-base"
    shutil.copytree(tiny_base_folder, folder)
    weights = {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return resolve_base(str(folder), registry=registry, plugins=load_plugins(allow=()), name="narrow")


@torch.no_grad()
def plain_loss(model: nn.Module, rows: list[Example]) -> float:
    """Mean nats per trained token, by transformers' own forward and torch's own cross-entropy."""
    nats, tokens = 0.0, 0
    for row in rows:
        logits = model.eval()(torch.tensor([row.ids])).logits[0, :-1].float()
        labels = torch.tensor([i if trained else -100 for i, trained in zip(row.ids, row.trained, strict=True)])[1:]
        nats += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    return nats / tokens


def held_out(base: Base, data: Path) -> list[Example]:
    """The rows that `train` holds out of `data`."""
    return read_corpus(
        [data],
        None,
        TrainingParameters(eval_fraction=0.2),
        formats=load_plugins(allow=()).formats(),
        renderer=Renderer(Path(base.path)),
    ).held_out


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.usefixtures("forked_gates")
def test_the_recorded_loss_is_that_of_the_saved_files_and_of_what_is_served(
    train: Train, registry: Registry, narrow_base: Base, data: Path, tmp_path: Path
) -> None:
    version = train("full", base=narrow_base, gates=True, **SMALL_STEPS)
    registry.export(version, tmp_path / "files")
    rows, metrics = held_out(narrow_base, data), version.metrics
    base, saved = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (narrow_base.path, tmp_path / "files" / "model")
    )
    assert plain_loss(base, rows) == pytest.approx(metrics["base_loss"], abs=SAME)
    assert plain_loss(saved, rows) == pytest.approx(metrics["eval_loss"], abs=SAME)
    assert metrics["exact_loss"] == metrics["eval_loss"] < metrics["base_loss"]
    delta = PeftModel.from_pretrained(base, str(tmp_path / "files"))
    assert plain_loss(delta, rows) == pytest.approx(metrics["delta_loss"], abs=SAME)
    # The engine that serves has the same log-probabilities, token by token.
    served = next(gate for gate in version.manifest["gates"] if gate["name"] == "served")
    assert served["passed"], served["message"]
    assert served["figures"]["missed"] < 1e-3
    assert version.manifest["precision"] == {"computed": "bfloat16", "measured": "float32"}


def test_small_steps_are_seen_by_the_forward_pass(
    train: Train, narrow_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that have moved by less than half of what bfloat16 resolves are computed with as
    moved, some of the time."""
    seen: list[torch.Tensor] = []
    loss = Supervised.loss

    def spied(self: Supervised, model: Any, batch: Any) -> StepLoss:
        if model.training:
            seen.append(model.lm_head.weight.detach().bfloat16())
        return loss(self, model, batch)

    monkeypatch.setattr(Supervised, "loss", spied)
    train("full", base=narrow_base, precision="bfloat16", learning_rate=1e-6, max_steps=4, micro_batch_size=4)
    base = load_file(Path(narrow_base.path) / "model.safetensors")["model.embed_tokens.weight"]
    coarse = base.abs() > 0.05
    moved = [int((weight != base)[coarse].sum()) for weight in seen[-4:]]
    assert moved[0] == 0
    assert 0 < moved[1] < moved[3] < 0.05 * int(coarse.sum())


class Killed(BaseException):
    """Stands for the process's end."""


def kill_at(step: int) -> EventSink:
    def report(event: JobEvent) -> None:
        if isinstance(event, StepCompleted) and event.step == step:
            raise Killed

    return report


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_rounds_the_same_way(method: str, train: Train, registry: Registry) -> None:
    # Rounding depends on the micro-batch, and that on the memory that is free, unless it is given.
    settings = {"precision": "bfloat16", "max_steps": 6, "checkpoint_every": 2, "memory_gb": 100}
    whole = train(method, **settings)
    with pytest.raises(Killed):
        train(method, on_event=kill_at(5), **settings)
    plugins = load_plugins(allow=(), without=("gates",))
    again = resume(registry.jobs()[0].id, registry=registry, plugins=plugins, on_event=lambda event: None)
    assert again.manifest["parameters"] == whole.manifest["parameters"]
    assert again.metrics | {"useful_tok_s": 0} == whole.metrics | {"useful_tok_s": 0}
    assert again.files == whole.files
    assert again.digest == whole.digest


def test_whole_modules_of_a_parent_are_trained_in_float32(
    train: Train, registry: Registry, tiny_base: Base, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_base.path, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(str(tmp_path / "parent"))
    import_folder(
        registry, tmp_path / "parent", Destination(adapter="acme/tiny", base=tiny_base, actor="test", trust_base=True)
    )
    version = train("lora", parent="acme/tiny@1", precision="bfloat16", learning_rate=1e-4, max_steps=4)
    files = registry.files(version)
    norm = load_file(files["adapter_model.safetensors"])["base_model.model.model.norm.weight"]
    assert norm.dtype == torch.float32
    # A step of 1e-4 is less than bfloat16 can tell from 1.
    assert 0 < float((norm - 1).abs().max()) < 2e-3
    assert version.manifest["precision"] == {"computed": "bfloat16", "measured": "float32"}


@pytest.mark.slow
def test_rounding_is_exact_on_average_and_leaves_the_weights_alone() -> None:
    weight = nn.Parameter(torch.linspace(-3, 3, 4001))
    before, rounding = weight.detach().clone(), StochasticRounding([weight], seed=7)
    total, steps = torch.zeros_like(before), 400
    for step in range(steps):
        with rounding.applied(step):
            seen = weight.detach().clone()
        assert torch.equal(seen, seen.bfloat16().float())
        total += seen
    # The mean of so many is within five standard errors of half a unit in the last place.
    unit = before.abs() * 2**-7
    assert bool(((total / steps - before).abs() <= 5 * unit / steps**0.5 + 1e-12).all())
    assert torch.equal(weight, before)
    with pytest.raises(KeyboardInterrupt), rounding.applied(0):
        raise KeyboardInterrupt
    assert torch.equal(weight, before)
