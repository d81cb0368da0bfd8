"""Describe the machine and the packages that something was measured with."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from tunery.plugins.runtime.machine import describe_machine

__all__ = ["describe"]


def describe() -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    machine = describe_machine("cuda" if torch.cuda.is_available() else "cpu")
    packages = ("tunery", "torch", "transformers", "peft", "bitsandbytes")
    return machine | {"versions": {name: version(name) for name in packages}}
