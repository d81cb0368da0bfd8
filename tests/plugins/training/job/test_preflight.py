"""The longest rows are tried before a run: a quote, smaller micro-batches where memory is short,
and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.plugins.training.conftest import Train
from tunery.plugins.events import Evaluated, JobEvent, Quoted
from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.job.preflight import _fitting, _states, preflight
from tunery.plugins.training.loop.compute import ComputeContext
from tunery.plugins.training.objectives.objective import Supervised
from tunery.registry.errors import InvalidInput
from tunery.registry.registry import Registry

GB = 10**9


def compute(dtype: torch.dtype) -> ComputeContext:
    return ComputeContext(device=torch.device("cpu"), dtype=dtype, measured_dtype=dtype)


@pytest.mark.parametrize(
    ("wanted", "one", "before", "budget", "size"),
    [
        (8, 1, 0, 100, 8),
        (8, 10, 20, 100, 8),
        (8, 20, 20, 100, 4),
        (8, 50, 20, 100, 1),
        (8, 90, 20, 100, 0),
        (1, 1, 0, 1, 1),
    ],
)
def test_the_micro_batch_is_halved_until_it_fits(wanted: int, one: int, before: int, budget: int, size: int) -> None:
    assert _fitting(wanted, one, before, budget) == size


def test_the_quote_is_of_the_run_and_nothing_is_left_behind(tiny_base_folder: Path) -> None:
    from tunery.plugins.parameters import TrainingParameters
    from tunery.plugins.training.trainer import load_base

    model = load_base(tiny_base_folder, quant="none", dtype=torch.float32, device=torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = [Example([1 + i % 50] * (10 + i), [False] * 5 + [True] * (5 + i), i + 1) for i in range(20)]
    torch.manual_seed(3)
    random = torch.get_rng_state()
    parameters = TrainingParameters(batch_size=4, micro_batch_size=4, epochs=2)
    quote = preflight(model, rows, parameters, objective=Supervised(), compute=compute(torch.float32))
    assert (quote.steps, quote.micro_batch_size) == (10, 4)
    assert quote.tokens == 2 * sum(len(row.ids) for row in rows)
    assert quote.minutes > 0
    assert quote.peak_bytes > 10**7
    narrow = preflight(model, rows, parameters, objective=Supervised(), compute=compute(torch.bfloat16))
    trained = sum(parameter.numel() for parameter in model.parameters())
    # The optimizer's moments, and the copy that is rounded for bfloat16, are there from the first step on only.
    assert _states(model, torch.bfloat16) - _states(model, torch.float32) == 4 * trained
    assert narrow.peak_bytes > 12 * trained
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_run_that_cannot_fit_is_refused_before_it_starts(train: Train, registry: Registry) -> None:
    with pytest.raises(InvalidInput, match=r"longest row .* line .* needs") as caught:
        train("lora", memory_gb=0.001)
    assert caught.value.code == "out_of_memory"
    assert registry.versions() == []
    assert registry.jobs()[0].state == "failed"


def test_the_choice_and_the_quote_are_reported_and_kept(train: Train, events: list[JobEvent]) -> None:
    version = train("lora", epochs=1)
    quote = next(event for event in events if isinstance(event, Quoted))
    assert version.manifest["quote"]["steps"] == quote.steps == 8
    assert {choice["name"] for choice in version.manifest["choices"]} >= {"warmup", "eval_every", "patience"}


def test_the_best_weights_are_kept_and_the_choice_explained(train: Train, events: list[JobEvent]) -> None:
    # Far too high a rate for so long that the held-out loss rises again.
    version = train("lora", epochs=20, learning_rate=0.03, eval_every=5, patience=2)
    evaluated = {e.step: e.eval_loss for e in events if isinstance(e, Evaluated) and e.step}
    best = min(evaluated, key=lambda step: (evaluated[step], step))
    checkpoint = version.manifest["checkpoint"]
    assert checkpoint["step"] == best
    assert f"step {best}" in checkpoint["why"] or f"last step, {best}" in checkpoint["why"]
    assert version.metrics["eval_loss"] == pytest.approx(evaluated[best])
