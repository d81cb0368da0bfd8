"""Settle the shape of a pair that is continued: it is the parent's, and asking for another is refused before there is a job."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.trainers import LoraParameters
from tunery.registry.errors import InvalidInput

__all__ = ["continued"]

P = TypeVar("P", bound=TrainingParameters)

SHAPE = {"r": "r", "alpha": "lora_alpha", "rslora": "use_rslora", "target_modules": "target_modules"}
"""Parameters that a parent decides, and what its adapter configuration calls them."""


def continued(parameters: P, given: Collection[str], parent: Mapping[str, Any] | None) -> P:
    """`parameters` with the shape of the `parent`, an adapter configuration; raise InvalidInput where another one was `given`.

    Parameters of trainers that make no pairs are returned as they are.
    """
    if parent is None or not isinstance(parameters, LoraParameters):
        return parameters
    shape: dict[str, Any] = {}
    for name, field in SHAPE.items():
        if field not in parent:
            continue
        asked, has = getattr(parameters, name), parent[field]
        if name not in given:
            shape[name] = tuple(has) if isinstance(has, list) else has
        elif _plain(asked) != _plain(has):
            raise InvalidInput(
                f"the version to continue from has {name}={_plain(has)}, {name}={_plain(asked)} was asked for; leave {name} out, "
                "or start without --from",
                code="invalid_parameter",
                param=name,
            )
    try:
        return msgspec.convert(msgspec.to_builtins(parameters) | msgspec.to_builtins(shape), type(parameters))
    except msgspec.ValidationError:  # a shape that no trainer here could be asked for, such as names by pattern
        return parameters


def _plain(value: Any) -> Any:
    """Names of modules in one order, so that they compare and read alike."""
    return sorted(value) if isinstance(value, list | tuple | set) else value
