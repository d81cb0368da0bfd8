"""Describe the hardware that something was trained or measured on, without identifying the machine."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from tunery.plugins.runtime.threads import available_cores

__all__ = ["describe_machine"]

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, its relevant features, usable cores, memory, torch's threads, and the GPU's name where `device` is
    one."""
    import torch

    return {
        "device": device,
        "processor": _line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "features": [flag for flag in FLAGS if flag in (_line("/proc/cpuinfo", "flags") or "").split()],
        "cores": available_cores(),
        "memory": _line("/proc/meminfo", "MemTotal"),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
    }


def _line(path: str, name: str) -> str | None:
    """The value of the first line that begins with `name`."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
