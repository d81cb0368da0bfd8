"""Narrow a type where a test knows more than the annotation says."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """`value`, which the test expects to be there: None fails the test."""
    assert value is not None
    return value
