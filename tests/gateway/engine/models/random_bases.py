"""A base of any architecture, random and small, and what transformers alone says of prompts, to
compare the engine with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tests.gateway.engine.models.tiny_configs import tiny_config
from tests.gateway.engine.peft_oracle import Engine, describe, make_adapter, prompt, request
from tunery.gateway.engine.composition import AdapterSource
from tunery.plugins.trainers import LoraParameters
from tunery.plugins.trainers.lora import LoraTrainer
from tunery.plugins.training.examples.batches import Example, collate
from tunery.plugins.training.objectives.loss import row_losses
from tunery.plugins.training.trainer import LoadContext, SaveContext

__all__ = [
    "PROMPTS",
    "Scores",
    "attention_layers",
    "expected",
    "make_any_adapter",
    "make_any_base",
    "plain",
    "scores_of",
    "train",
]

Scores = list[torch.Tensor]
"""Of each prompt the natural-log probabilities of its tokens from the second on."""

PROMPTS = tuple(prompt(length, seed=length) for length in (20, 37, 120))
PROMPTS = (*PROMPTS, PROMPTS[2][:70] + PROMPTS[0])
"""Shorter and longer than windows; the last two begin alike."""
_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj"}
"""Names that PEFT takes for those of experts, wherever they are."""


def make_any_base(folder: Path, kind: str, **settings: Any) -> Path:
    """Save a random model of `kind` whose logits differ clearly between tokens."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **settings), dtype=torch.float32)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.data = noise * 0.12 if parameter.dim() >= 2 else parameter.data + noise * 0.2
    model.save_pretrained(folder)
    return folder


def plain(base: Path, adapter: Path | None = None) -> nn.Module:
    """transformers' own model in float32 with its plainest attention, under PEFT where there is an adapter."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return (model if adapter is None else PeftModel.from_pretrained(model, str(adapter))).eval()


@torch.no_grad()
def expected(model: Any, prompts: Sequence[tuple[int, ...]]) -> Scores:
    """What `model` says of each prompt alone, in one forward pass."""
    log_probabilities = []
    for one in prompts:
        logits = model(input_ids=torch.tensor([one]), use_cache=False).logits[0, :-1]
        log_probabilities.append(logits.float().log_softmax(-1)[torch.arange(len(one) - 1), list(one[1:])])
    return log_probabilities


def scores_of(engine: Engine, prompts: Sequence[tuple[int, ...]], adapters: Sequence[AdapterSource | None]) -> Scores:
    """What `engine` says of all prompts, each on its adapter, together."""
    asked = [
        request(str(index), one, adapter, max_tokens=1, prompt_logprobs=0)
        for index, (one, adapter) in enumerate(zip(prompts, adapters, strict=True))
    ]
    answers = engine.run(asked)
    return [torch.tensor([score.logprob for score in answers[str(at)][0].prompt_scores]) for at in range(len(prompts))]


def attention_layers(model: nn.Module) -> list[str]:
    """Last names of the linear layers in attention."""
    attention = [module for module in model.modules() if "attention" in type(module).__name__.lower()]
    children = [child for module in attention for child in module.named_children()]
    return sorted({name for name, child in children if type(child) in (nn.Linear, Conv1D)} - _EXPERTS)


def make_any_adapter(base: Path, folder: Path, model: nn.Module) -> AdapterSource:
    """A random LoRA on attention, with norms of its own as full fine-tunes have them."""
    norms = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not any(module.children()) and list(module.parameters())
    }
    own = sorted(name for name in norms if not name.isdigit())
    turned = any(isinstance(module, Conv1D) for module in model.modules())
    targets = attention_layers(model)
    return make_adapter(base, folder, target_modules=targets, modules_to_save=own or None, fan_in_fan_out=turned)


def train(base: Path, folder: Path) -> tuple[AdapterSource, nn.Module]:
    """One step of the lora trainer with its own settings, saved to `folder`; the files, and the
    model as it was trained."""
    cpu = torch.device("cpu")
    context = LoadContext(
        base_folder=base, parameters=LoraParameters(r=4), device=cpu, dtype=torch.float32, parent=None
    )
    trainer = LoraTrainer()
    model = trainer.load(context)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    examples = [Example(list(one), [at > 5 for at in range(len(one))], 0) for one in PROMPTS[:2]]
    row_losses(model, collate(examples, device=cpu)).sum().backward()
    idle = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    if idle:
        raise AssertionError(f"nothing is learned by {idle}")
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    folder.mkdir()
    trainer.save(model.eval(), folder, SaveContext(load=context, evaluate=None, base_loss=None, eval_loss=None))
    return describe(folder), model
