"""Owns saying on what machine something was measured; refuses to name it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe"]

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")


def describe() -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    return {
        "processor": _line("/proc/cpuinfo", "model name") or platform.processor(),
        "features": [flag for flag in FLAGS if flag in (_line("/proc/cpuinfo", "flags") or "").split()],
        "cores": os.cpu_count(),
        "memory": _line("/proc/meminfo", "MemTotal"),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in ("tunery", "torch", "transformers", "peft", "bitsandbytes")},
    }


def _line(path: str, name: str) -> str | None:
    """The value of the first line that begins with `name`."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
