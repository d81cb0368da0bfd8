"""Measure what a trainer saves against what it trained: log-probabilities of the live model, the saved files and the
base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunery.plugins.parameters import read_parameters
from tunery.plugins.testing.harness import TrainerHarness, with_adapter

__all__ = ["distributions", "divergence"]


def distributions(harness: TrainerHarness, folder: Path) -> tuple[Any, Any, Any]:
    """Log-probabilities, each [tokens, vocabulary], over the prompts: of the live model, of what it saves, of the
    base."""
    import torch

    from tunery.plugins.descriptors import load_entrypoint
    from tunery.plugins.training import LoadContext, SaveContext, load_base
    from tunery.plugins.training.folder import JobFolder
    from tunery.plugins.training.loop.compute import ComputeContext
    from tunery.plugins.training.loop.loop import Loop
    from tunery.plugins.training.objectives.objective import objective_of
    from tunery.plugins.training.trainer import load_trained

    kind = harness.plugins.trainer(harness.trainer).parameters
    parameters: Any = read_parameters(
        kind, {"learning_rate": 0.01, "max_steps": 20, "batch_size": 4, "precision": "float32"} | harness.values
    )
    cpu, base_folder = torch.device("cpu"), Path(harness.base.path)
    trainer = load_entrypoint(harness.plugins.trainer(harness.trainer).entrypoint)()
    context = LoadContext(base_folder=base_folder, parameters=parameters, device=cpu, dtype=torch.float32, parent=None)
    torch.manual_seed(0)
    model = load_trained(trainer, context)
    rows, objective = harness.corpus().train, objective_of(trainer, parameters)
    objective.prepare(model, (rows, ()), path=folder / "reference.json", device=cpu, dtype=torch.float32)
    Loop(
        model,
        rows,
        parameters,
        compute=ComputeContext(device=cpu, dtype=torch.float32, measured_dtype=torch.float32),
        folder=JobFolder(folder),
        fingerprint="",
        objective=objective,
    ).run()
    live = _log_probabilities(model, harness.prompts())
    output = folder / "output"
    output.mkdir()
    trainer.save(model, output, SaveContext(load=context, evaluate=None, base_loss=None, eval_loss=None))
    base = load_base(base_folder, quant=trainer.quant, dtype=torch.float32, device=cpu)
    before = _log_probabilities(base, harness.prompts())
    saved = _log_probabilities(with_adapter(base, output), harness.prompts())
    return live, saved, before


def _log_probabilities(model: Any, prompts: list[list[int]]) -> Any:
    import torch

    model.eval()
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0] for prompt in prompts]
    return torch.cat(logits).float().log_softmax(-1)


def divergence(of: Any, other: Any) -> float:
    """Mean Kullback-Leibler divergence, in nats per token."""
    return float((of.exp() * (of - other)).sum(-1).mean())
