"""The gates that need no engine: they look at the files, and at what the trainer measured of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tunery.plugins.training.gates.request import GateCase
from tunery.plugins.training.gates.verdict import Verdict, failed, passed, skipped
from tunery.registry.errors import some_of
from tunery.registry.peft.base_shapes import base_shapes
from tunery.registry.peft.layout import CONFIG, WEIGHTS, read_layout
from tunery.registry.peft.safetensors_header import nonfinite_tensor, read_header

__all__ = ["changes_every_target", "delta_is_faithful", "is_finite"]

FIDELITY_SLACK = 0.005
"""The search for a delta measures in the precision of training; a shortfall of this much is rounding."""
SHOWN = 5


def is_finite(case: GateCase) -> Verdict:
    """Every tensor of every safetensors file is free of NaN and infinities."""
    folder = Path(case.request.folder)
    files = sorted(folder.rglob("*.safetensors"))
    count = 0
    for path in files:
        header = read_header(path)
        count += len(header)
        bad = nonfinite_tensor(path, header)
        if bad is not None:
            name = path.relative_to(folder).as_posix()
            return failed(f"{name}: {bad} holds NaN or infinity; lower learning_rate and train again")
    return passed(f"all {count} tensors are finite", tensors=float(count))


def changes_every_target(case: GateCase) -> Verdict:
    """The correction of every target (B times A; of a full fine-tune, every matrix of the base) is other than zero."""
    folder = Path(case.request.folder)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        norms = dict(_norms(file))
    targets = set(norms) | (_matrices(Path(case.request.base_folder)) if _is_full(case) else set())
    zero = sorted(target for target in targets if norms.get(target, 0.0) == 0.0)
    if not targets:
        return failed(f"{WEIGHTS} has no low-rank pair, so it would change nothing; look at target_modules in {CONFIG}")
    figures = {"targets": float(len(targets)), "zero": float(len(zero))}
    if not zero:
        return passed(f"all {len(targets)} targets are changed", **figures)
    which = "all" if len(zero) == len(targets) else f"{len(zero)} of"
    return failed(
        f"{which} {len(targets)} targets are changed by exactly nothing: {some_of(zero, SHOWN)}; no gradient reached them, or the learning rate "
        "was zero",
        **figures,
    )


def delta_is_faithful(case: GateCase) -> Verdict:
    """The served delta of a full fine-tune keeps the requested share of the held-out improvement."""
    measured, wanted = case.request.metrics.get("delta_fidelity"), case.request.parameters.get("fidelity")
    if wanted is None:
        return skipped("only a full fine-tune is served as a delta")
    if measured is None:
        return skipped("nothing was held out to measure the delta by", asked=wanted)
    figures = {"fidelity": measured, "asked": wanted}
    message = f"the served delta keeps {measured:.3f} of the held-out improvement, {wanted:g} was asked for"
    if measured >= wanted - FIDELITY_SLACK:
        return passed(message, **figures)
    return failed(f"{message}: lower fidelity, hold out more rows, or train a lora, which is served exactly", **figures)


def _norms(file: Any) -> Iterator[tuple[str, float]]:
    """Every low-rank pair by module, with the Frobenius norm of its product.

    ‖BA‖² is the sum of (BᵀB)·(AAᵀ), r by r, so that the product itself is never made.
    """
    for module, pair in read_layout(file.keys()).pairs.items():
        if pair.a is None or pair.b is None:
            yield module, 0.0
            continue
        a, b = file.get_tensor(pair.a).double(), file.get_tensor(pair.b).double()
        squared = float(((b.T @ b) * (a @ a.T)).sum())
        # Rounding may leave a hair of what cancels.
        yield module, max(squared, 0.0) ** 0.5


def _is_full(case: GateCase) -> bool:
    """Whether the files are a delta of every weight, which leaves out what did not change."""
    return "delta_energy_kept" in case.request.metrics


def _matrices(base: Path) -> set[str]:
    return {name.removesuffix(".weight") for name, shape in base_shapes(base).items() if len(shape) == 2}
