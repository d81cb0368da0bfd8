"""Batch-invariant products of a mixture's experts, registered with transformers as `tunery_rows`.

transformers' own forwards multiply all rows of an expert at once, and torch's kernels choose the order of summation by
the number of rows. Here each product is taken over blocks of rows, as all others are (see linear.py), and a row's
expert outputs are added up in the order in which the router named the experts.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tunery.gateway.engine.models.torch.linear import linear

__all__ = ["EXPERTS", "register_experts"]

EXPERTS = "tunery_rows"


def register_experts() -> None:
    """Teach transformers the name EXPERTS. Harmless when repeated."""
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS, experts_forward)


def experts_forward(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Each row of `hidden_states` [T, hidden] through its experts `top_k_index` [T, k], weighted by `top_k_weights` [T,
    k].
    """
    chosen = hidden_states.new_zeros((*top_k_index.shape, hidden_states.shape[-1]))
    for expert in top_k_index.unique().tolist():
        if expert < module.num_experts:
            rows, places = torch.where(top_k_index == expert)
            chosen[rows, places] = _one(module, hidden_states[rows], expert)
    return (chosen * top_k_weights[..., None].to(chosen.dtype)).sum(dim=1)


def _one(module: Any, rows: torch.Tensor, expert: int) -> torch.Tensor:
    """The output of one expert for its rows, by the layout that its class declares."""
    inner = _project(module, rows, "gate_up_proj" if module.has_gate else "up_proj", expert)
    active = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    result = _project(module, active, "down_proj", expert)
    return module.post_expert_norm(result) if module.has_post_expert_norm else result


def _project(module: Any, rows: torch.Tensor, name: str, expert: int) -> torch.Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return linear(rows, weight.T if module.is_transposed else weight, bias)
