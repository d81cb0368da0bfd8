"""Owns finding and calling the native kernels of training (the C files beside it, built with the package where there is a compiler).

They are used for bfloat16 tensors on CPUs that they fit; who calls them has a plain way for everything else.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

from tunery.plugins.runtime.native import open_kernels

__all__ = ["Kernels", "PackedWeight", "RowsTable", "Term", "load_kernels", "native"]

_P, _I, _D = c_void_p, c_int64, c_double


class RowsTable(Structure):
    """`struct rows`."""

    _fields_ = (
        *((name, c_void_p) for name in ("start", "length", "seen", "first", "index", "shares")),
        *((name, c_int64) for name in ("count", "tokens", "heads", "groups", "size")),
    )


class PackedWeight(Structure):
    """`struct packed`."""

    _fields_ = (
        *((name, c_void_p) for name in ("elements", "scales", "values", "steps", "levels")),
        ("offset", c_double),
        ("group", c_int64),
    )


class Term(Structure):
    """`struct term`."""

    _fields_ = (
        *((name, c_void_p) for name in ("a", "b", "packed")),
        *((name, c_int64) for name in ("a_row", "b_row", "depth", "turned", "start")),
    )


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "attend": (_P, _P, _P, _P, _P, POINTER(RowsTable), _D),
    "attend_backward": (_P, _P, _P, _P, _P, _P, _P, _P, POINTER(RowsTable), _D),
    "cross_entropy": (_P, _P, _P, _I, _I, _I),
    "norm": (_P, _P, _P, _P, _I, _I, _D),
    "norm_backward": (_P, _P, _P, _P, _P, _P, _P, _I, _I),
    "product": (_P, _I, _P, _I, _P, _I, _I, _I),
    "rotate": (_P, _P, _P, _I, _I, _I, _D),
    "swiglu": (_P, _P, _P, _I),
    "swiglu_backward": (_P, _P, _P, _P, _P, _I),
}


class Kernels:
    """The library's functions, each named as in its C file without its prefix; tensors are given for their data.

    `tiles` says that the CPU multiplies tiles of bfloat16, so that torch's own products are faster.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {name: getattr(library, f"tunery_{name}") for name in _SIGNATURES}
        for name, function in self._functions.items():
            function.argtypes, function.restype = _SIGNATURES[name], None
        self.tiles = bool(library.tunery_has_tiles())

    def call(self, name: str, *arguments: object) -> None:
        """Run one of them."""
        self._functions[name](*(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments))


@functools.cache
def load_kernels(folder: Path = Path(__file__).parent) -> Kernels | None:
    """The kernels that were built into `folder`, or None where they were not or do not fit this CPU."""
    found = open_kernels(folder, Kernels)
    return found if isinstance(found, Kernels) else None


def native(*tensors: torch.Tensor) -> Kernels | None:
    """The kernels, if they are there and fit these tensors."""
    fitting = all(x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.is_contiguous() for x in tensors)
    return load_kernels() if fitting else None
