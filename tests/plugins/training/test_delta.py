"""A full tune's delta: an ordinary PEFT adapter that PEFT and the engine read alike, at the
fidelity that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from tests.gateway.engine.peft_oracle import Engine, alone, describe, make_base, prompt, request
from tunery.plugins.training.delta import save_delta

IDS = torch.tensor([prompt(24, seed=seed) for seed in range(6)])


def tuned(base: Path, *, seed: int = 1) -> nn.Module:
    """The base with every parameter moved."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                rank = 6
                left = torch.randn(parameter.shape[0], rank, generator=generator)
                right = torch.randn(rank, parameter.shape[1], generator=generator)
                parameter.add_(0.02 * left @ right + 0.0005 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def against(teacher: nn.Module) -> Callable[[nn.Module], float]:
    """A loss whose minimum is the teacher: cross-entropy against its distribution."""
    with torch.no_grad():
        wanted = teacher(input_ids=IDS).logits.softmax(-1)

    @torch.no_grad()
    def loss(model: nn.Module) -> float:
        return float(-(wanted * model(input_ids=IDS).logits.log_softmax(-1)).sum(-1).mean())

    return loss


def written(base: Path, folder: Path, *, fidelity: float) -> tuple[nn.Module, dict[str, float]]:
    model, plain = tuned(base), AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    loss = against(model)
    folder.mkdir()
    base_loss, exact_loss = loss(plain), loss(model)
    metrics = save_delta(
        model, plain, folder, fidelity=fidelity, evaluate=loss, base_loss=base_loss, exact_loss=exact_loss
    )
    return model, metrics


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_peft_and_the_engine_give_what_was_measured(tmp_path: Path, family: str) -> None:
    base = make_base(tmp_path / "base", family)
    model, metrics = written(base, tmp_path / "delta", fidelity=0.95)
    loss = against(model)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    oracle = PeftModel.from_pretrained(plain, str(tmp_path / "delta")).eval()
    assert loss(oracle) == pytest.approx(metrics["delta_loss"], abs=2e-3)
    assert metrics["delta_fidelity"] >= 0.95
    requests = [request("delta", prompt(20, seed=3), describe(tmp_path / "delta")), request("base", prompt(9, seed=4))]
    served = Engine.on(base).run(requests)["delta"]
    expected = alone(oracle, requests[0])
    assert [token.token for token in served] == [token for token, _ in expected]
    assert max(abs(token.logprob - p) for token, (_, p) in zip(served, expected, strict=True)) <= 1e-3


def test_more_fidelity_takes_more_bytes(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    sizes, kept = [], []
    for index, fidelity in enumerate((0.5, 0.9, 0.99)):
        _, metrics = written(base, tmp_path / str(index), fidelity=fidelity)
        assert metrics["delta_fidelity"] >= fidelity
        sizes.append(metrics["delta_bytes"])
        kept.append(metrics["delta_energy_kept"])
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert kept == sorted(kept)


def test_without_held_out_rows_most_of_the_energy_is_kept(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    model, plain = tuned(base), AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    (tmp_path / "delta").mkdir()
    metrics = save_delta(
        model, plain, tmp_path / "delta", fidelity=0.95, evaluate=None, base_loss=None, exact_loss=None
    )
    assert metrics["delta_energy_kept"] == 0.95
    assert "delta_fidelity" not in metrics
