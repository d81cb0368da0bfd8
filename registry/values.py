"""Owns reading one value, written as text or given as it is, into the type that a setting or parameter has."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import msgspec

from tunery.registry.errors import InvalidInput, near

__all__ = ["read_value"]


def read_value(name: str, value: Any, kind: Any) -> Any:
    """`value` as a `kind`; raise InvalidInput saying what `name` may be."""
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        if get_origin(kind) is Literal:
            raise InvalidInput(f"{name}={value!r}: {near(str(value), map(str, get_args(kind)))}", param=name) from error
        raise InvalidInput(f"{name}={value!r}: {error}", param=name) from error
