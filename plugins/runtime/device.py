"""Choose and check the device that a model runs on, before anything is started for it."""

from __future__ import annotations

import re
import subprocess
import sys

from tunery.registry.errors import InvalidInput

__all__ = ["check_device", "resolve_device"]

_NAME = re.compile(r"cpu|cuda(?::\d{1,4})?")


def resolve_device(name: str) -> str:
    """`name` as torch takes it; `auto` is the GPU where there is one. Raises InvalidInput where there is no such
    device.

    torch is imported only where the answer depends on it.
    """
    _check_name(name)
    if name == "cpu":
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    _check_number(name, count)
    return name


def check_device(name: str) -> None:
    """Raise InvalidInput where there is no such device, without importing torch here: a child process counts the
    GPUs."""
    _check_name(name)
    if name not in ("auto", "cpu"):
        code = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        _check_number(name, int(done.stdout.strip() or 0))


def _check_name(name: str) -> None:
    if name != "auto" and _NAME.fullmatch(name) is None:
        raise _refused(f"device {name!r} is not one that Tunery runs on; use cpu, cuda, cuda:1 … or auto")


def _check_number(name: str, count: int) -> None:
    if not count:
        raise _refused(
            f"device {name!r}: torch finds no CUDA device here; use cpu, or install torch with CUDA and a driver"
        )
    _, _, number = name.partition(":")
    if number and int(number) >= count:
        names = ", ".join(f"cuda:{each}" for each in range(count))
        raise _refused(f"device {name!r}: there is no such GPU; this machine has {names}")


def _refused(message: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_device", param="device")
