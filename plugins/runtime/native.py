"""Load libraries of native kernels, which are built with the package where there is a compiler, and limit their
threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_int
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["declare_functions", "limit_kernel_threads", "open_kernels"]

T = TypeVar("T")

_libraries: list[ctypes.CDLL] = []
_limit = 0


def open_kernels(folder: Path, bind: Callable[[ctypes.CDLL], T]) -> T | str:
    """The library built into `folder`, as `bind` returns it; or the reason why it cannot be used, and what to do about
    it."""
    import torch  # noqa: F401 - its OpenMP runtime must be the one that the library finds

    paths = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_kernels{suffix}").is_file()]
    if not paths:
        return "they were not built; reinstall Tunery where there is a C compiler"
    try:
        library = ctypes.CDLL(str(paths[0]))
        library.tunery_supported.restype = c_int
        if not library.tunery_supported():
            return "this CPU lacks AVX-512 with BF16"
        library.tunery_limit_threads.argtypes, library.tunery_limit_threads.restype = [c_int], None
        bound = bind(library)
    except (OSError, AttributeError) as error:
        return f"{paths[0].name} cannot be used ({error}); reinstall Tunery"
    _libraries.append(library)
    library.tunery_limit_threads(_limit)
    return bound


def declare_functions(library: ctypes.CDLL, signatures: Mapping[str, Sequence[Any]]) -> None:
    """Give the arguments of the library's functions, by their names without the prefix `tunery_`;
    they return nothing."""
    for name, arguments in signatures.items():
        function = getattr(library, f"tunery_{name}")
        function.argtypes, function.restype = arguments, None


def limit_kernel_threads(limit: int) -> None:
    """Let parallel regions of every loaded library use at most `limit` threads (0: no limit), from the next region on.

    Results do not change: every element is computed by one thread, in a fixed order.
    """
    global _limit
    _limit = limit
    for library in _libraries:
        library.tunery_limit_threads(limit)
