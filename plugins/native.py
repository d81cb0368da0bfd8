"""Owns opening libraries of native kernels, which are built with the package where there is a compiler; refuses CPUs they do not fit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_int
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TypeVar

__all__ = ["open_kernels"]

T = TypeVar("T")


def open_kernels(folder: Path, bind: Callable[[ctypes.CDLL], T]) -> T | str:
    """What `bind` makes of the library that was built into `folder`, or why there is none and what to do about it."""
    import torch  # noqa: F401 - its OpenMP runtime must be the one that the library finds

    paths = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_kernels{suffix}").is_file()]
    if not paths:
        return "they were not built; install Tunery anew where there is a C compiler"
    try:
        library = ctypes.CDLL(str(paths[0]))
        library.tunery_supported.restype = c_int
        return bind(library) if library.tunery_supported() else "this CPU lacks AVX-512 with BF16"
    except (OSError, AttributeError) as error:
        return f"{paths[0].name} cannot be used ({error}); install Tunery anew"
