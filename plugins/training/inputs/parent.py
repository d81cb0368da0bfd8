"""The shape of a LoRA that continues a parent version: rank, alpha and targets are the parent's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.trainers import LoraParameters
from tunery.registry.errors import InvalidInput

__all__ = ["with_parent_shape"]

P = TypeVar("P", bound=TrainingParameters)

SHAPE = {"r": "r", "alpha": "lora_alpha", "rslora": "use_rslora", "target_modules": "target_modules"}
"""Parameters that the parent decides, and their names in PEFT's configuration."""


def with_parent_shape(parameters: P, given: Collection[str], parent: Mapping[str, Any] | None) -> P:
    """`parameters` with the shape of the `parent`, an adapter configuration; raise InvalidInput when another shape was `given`.

    Parameters of trainers that make no LoRA are returned as they are.
    """
    if parent is None or not isinstance(parameters, LoraParameters):
        return parameters
    shape: dict[str, Any] = {}
    for name, field in SHAPE.items():
        if field not in parent:
            continue
        value, parent_value = getattr(parameters, name), parent[field]
        if name not in given:
            shape[name] = tuple(parent_value) if isinstance(parent_value, list) else parent_value
        elif _sorted(value) != _sorted(parent_value):
            raise InvalidInput(
                f"the version to continue from has {name}={_sorted(parent_value)}, {name}={_sorted(value)} was asked for; leave {name} out, "
                "or start without --from",
                code="invalid_parameter",
                param=name,
            )
    try:
        return msgspec.convert(msgspec.to_builtins(parameters) | msgspec.to_builtins(shape), type(parameters))
    except msgspec.ValidationError:  # a shape that no trainer here could be asked for, such as names by pattern
        return parameters


def _sorted(value: Any) -> Any:
    """Module names in one order, so that they compare and read alike."""
    return sorted(value) if isinstance(value, list | tuple | set) else value
