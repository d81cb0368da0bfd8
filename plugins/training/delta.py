"""The delta that a full fine-tune is served as: its difference from the base, low rank for every
matrix, exact for everything else.

The result is an ordinary PEFT adapter, so PEFT itself can check it: a LoRA whose `rank_pattern` gives each matrix its
own rank (alpha is equal to it, so the scale is 1), with whole norms in `modules_to_save` and whole biases
(`bias: all`). The embedding's difference is `lora_embedding_A` and `lora_embedding_B`; an output head that shares the
embedding's weight gets the same two, transposed.

The rank of a matrix is the smallest that keeps a given share of its difference's energy (squared Frobenius norm; Eckart
and Young 1936). The share is the same for all matrices, and the smallest that reaches the requested fidelity, which is
the part of the held-out improvement that is kept: (base − delta) / (base − exact).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn

from tunery.registry.peft.layout import PREFIX, WEIGHTS, pair_keys, parameter_key

__all__ = ["SEARCHES", "save_delta"]

HIGHEST, LOWEST, SEARCHES = 0.9995, 0.05, 7
UNMEASURED = 0.95
"""The share of energy that is kept when no rows are held out to measure fidelity with."""


class _Factors(msgspec.Struct):
    """A difference [out, in] as left [out, k] times right [k, in], its singular values' squares in falling order."""

    left: torch.Tensor
    right: torch.Tensor
    energy: torch.Tensor

    def rank(self, share: float) -> int:
        """The smallest rank that keeps `share` of the energy; 0 when there is no difference."""
        total = float(self.energy.sum())
        if total == 0:
            return 0
        kept = self.energy.cumsum(0) / total
        return min(int((kept < share).sum()) + 1, self.energy.shape[0])


@torch.no_grad()
def save_delta(
    model: nn.Module,
    base: nn.Module,
    folder: Path,
    *,
    fidelity: float,
    evaluate: Callable[[nn.Module], float] | None,
    base_loss: float | None,
    exact_loss: float | None,
) -> dict[str, float]:
    """Write the delta of `model` against `base` into `folder`; return its measured fidelity, losses and size in bytes.

    `base` is changed in place: it becomes base plus delta.
    """
    factors = _factorise(model, base)
    originals = {name: module.weight.detach().clone() for name, module in _matrices(base)}
    _copy_rest(model, base)

    def apply(share: float) -> None:
        for name, module in _matrices(base):
            module.weight.copy_(originals[name] + _product(factors[name], share))

    def loss_at(share: float) -> float:
        apply(share)
        return evaluate(base) if evaluate else math.nan

    share, delta_loss = _search(loss_at, fidelity, base_loss, exact_loss)
    apply(share)
    ranks = {name: rank for name, f in factors.items() if (rank := f.rank(share))}
    size = _write(model, factors, ranks, folder)
    metrics = {
        "delta_energy_kept": share,
        "delta_mean_rank": sum(ranks.values()) / max(len(ranks), 1),
        "delta_bytes": float(size),
    }
    if base_loss is not None and exact_loss is not None and evaluate is not None:
        metrics |= {"exact_loss": exact_loss, "delta_loss": delta_loss}
        metrics["delta_fidelity"] = _fidelity(base_loss, exact_loss, delta_loss)
    return metrics


def _fidelity(base: float, exact: float, delta: float) -> float:
    """The share of the improvement that the delta keeps; 1 when there is none."""
    return (base - delta) / (base - exact) if base > exact else 1.0


def _search(
    loss_at: Callable[[float], float], wanted: float, base: float | None, exact: float | None
) -> tuple[float, float]:
    """The smallest share of energy, by bisection, whose measured fidelity reaches `wanted`, and the
    loss at that share."""
    if base is None or exact is None or base <= exact:
        share = UNMEASURED if base is None else HIGHEST
        return share, loss_at(share)
    low, high = LOWEST, HIGHEST
    best = (high, loss_at(high))
    for _ in range(SEARCHES):
        middle = (low + high) / 2
        loss = loss_at(middle)
        if _fidelity(base, exact, loss) >= wanted:
            high, best = middle, (middle, loss)
        else:
            low = middle
    return best


def _matrices(model: nn.Module) -> list[tuple[str, Any]]:
    """Linear layers and embeddings, without an output head that shares the embedding's weight."""
    whole: Any = model
    embedding = whole.get_input_embeddings()
    head = whole.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) and not (tied and module is head)
    ]


def _factorise(model: nn.Module, base: nn.Module) -> dict[str, _Factors]:
    """Singular value decomposition of every difference, through the smaller Gram matrix."""
    theirs = dict(_matrices(base))
    return {name: _factors(module.weight.float() - theirs[name].weight.float()) for name, module in _matrices(model)}


def _factors(difference: torch.Tensor) -> _Factors:
    wide = difference.shape[0] < difference.shape[1]
    tall = difference.T if wide else difference
    # double: the Gram matrix squares the condition number.
    values, vectors = torch.linalg.eigh((tall.T @ tall).double())
    basis = vectors.flip(-1).to(difference.dtype)
    left, right = (basis, basis.T @ difference) if wide else (difference @ basis, basis.T)
    return _Factors(left, right, values.flip(-1).clamp(min=0).float())


def _product(factors: _Factors, share: float) -> torch.Tensor:
    rank = factors.rank(share)
    # As served: both factors are stored in bfloat16.
    left, right = factors.left[:, :rank].bfloat16().float(), factors.right[:rank].bfloat16().float()
    return left @ right


def _copy_rest(model: nn.Module, base: nn.Module) -> None:
    """Copy every parameter outside the matrices (norms and biases) to the base."""
    matrices = {f"{name}.weight" for name, _ in _matrices(base)}
    own = dict(model.named_parameters())
    for name, parameter in base.named_parameters():
        if name not in matrices:
            parameter.copy_(own[name])


def _write(model: nn.Module, factors: dict[str, _Factors], ranks: dict[str, int], folder: Path) -> int:
    """Write the adapter's two files; return the size of the weights in bytes."""
    modules = dict(model.named_modules())
    tensors: dict[str, torch.Tensor] = {}
    for name, rank in ranks.items():
        left, right = factors[name].left[:, :rank], factors[name].right[:rank]
        if isinstance(modules[name], nn.Embedding):
            a, b = pair_keys(name, embedding=True)
            # PEFT looks tokens up in A: E^T = B A with A [r, vocabulary], B [hidden, r].
            tensors |= {a: left.T.contiguous().bfloat16(), b: right.T.contiguous().bfloat16()}
        else:
            a, b = pair_keys(name)
            tensors |= {a: right.contiguous().bfloat16(), b: left.contiguous().bfloat16()}
        if name == _tied_embedding(model):
            a, b = pair_keys(_head(model))
            tensors |= {a: right.contiguous().bfloat16(), b: left.contiguous().bfloat16()}
    whole, biases = _rest(model, set(ranks))
    tensors |= whole | biases
    save_file(tensors, folder / WEIGHTS)
    _config(model, ranks, whole, bool(biases)).save_pretrained(str(folder))
    return sum(tensor.nbytes for tensor in tensors.values())


def _rest(model: nn.Module, adapted: set[str]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Whole norms (and other leaf modules), and biases of linear layers, under PEFT's names."""
    whole: dict[str, torch.Tensor] = {}
    biases: dict[str, torch.Tensor] = {}
    matrices = {name for name, _ in _matrices(model)}
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        value = parameter.detach().cpu().contiguous()
        if module not in matrices:
            whole[parameter_key(name)] = value
        elif leaf == "bias":
            biases[parameter_key(name, adapted=module in adapted)] = value
    return whole, biases


def _config(model: nn.Module, ranks: dict[str, int], whole: dict[str, torch.Tensor], biases: bool) -> LoraConfig:
    embedding = _tied_embedding(model)
    adapted = ranks | ({_head(model): ranks[embedding]} if embedding in ranks else {})
    patterns = {name.replace(".", r"\."): rank for name, rank in adapted.items()}
    saved = sorted({key.removeprefix(PREFIX).rsplit(".", 2)[-2] for key in whole})
    return LoraConfig(
        r=max(adapted.values(), default=1),
        lora_alpha=max(adapted.values(), default=1),
        rank_pattern=patterns,
        alpha_pattern=dict(patterns),
        target_modules=sorted(adapted),
        modules_to_save=saved,
        bias="all" if biases else "none",
        task_type="CAUSAL_LM",
    )


def _head(model: nn.Module) -> str:
    """The name of the output head."""
    whole: Any = model
    names: dict[Any, str] = {module: name for name, module in model.named_modules()}
    return names[whole.get_output_embeddings()]


def _tied_embedding(model: nn.Module) -> str:
    """The name of the embedding when the output head shares its weight, else an empty string."""
    whole: Any = model
    embedding, head = whole.get_input_embeddings(), whole.get_output_embeddings()
    if head is None or head.weight is not embedding.weight:
        return ""
    names: dict[Any, str] = {module: name for name, module in model.named_modules()}
    return names[embedding]
