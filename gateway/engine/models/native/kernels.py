"""Find the native kernels, built from csrc/ where there is a C compiler, and bind their functions and structs.

Only the wrappers in ops/ call them: those take tensors and check dtype, layout and shape.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from pathlib import Path

from tunery.plugins.runtime.native import declare_functions, open_kernels

__all__ = [
    "PANEL",
    "Kernels",
    "LoraStruct",
    "SegmentStruct",
    "SpanStruct",
    "WeightStruct",
    "load_kernels",
    "why_no_kernels",
]

_HERE = Path(__file__).parent

PANEL = 48
"""Outputs of a linear layer that lie side by side in memory; a layer's outputs are padded to whole panels."""


class WeightStruct(Structure):
    """`struct weight` in csrc/common.h: a linear layer's weight in panels."""

    _fields_ = (
        ("data", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("format", c_int64),
        ("k", c_int64),
        ("panels", c_int64),
        ("group", c_int64),
    )


class LoraStruct(Structure):
    """`struct lora` in csrc/common.h: what an adapter adds to one target module."""

    _fields_ = (
        ("a", c_void_p),
        ("b", c_void_p),
        ("gain", c_void_p),
        ("shift", c_void_p),
        ("rank", c_int64),
        ("k", c_int64),
        ("scale", c_double),
    )


class SegmentStruct(Structure):
    """`struct segment` in csrc/common.h: rows that run through one adapter."""

    _fields_ = (("start", c_int64), ("end", c_int64), ("table", c_void_p), ("weight", c_double))


class SpanStruct(Structure):
    """`struct span` in csrc/attention.c: rows of one sequence, and its pages in the KV cache."""

    _fields_ = (("start", c_int64), ("end", c_int64), ("length", c_int64), ("pages", c_void_p))


_P, _I, _D = c_void_p, c_int64, c_double
_SIGNATURES = {
    "linear": (POINTER(WeightStruct), _I, _P, _I, _I, _P, _I, _P, _I, _I, _I, _P, _I, _I),
    "embed": (POINTER(WeightStruct), _P, _I, _P),
    "norm": (_P, _P, _I, _I, _I, _P, _D, _P, _I),
    "swiglu": (_P, _I, _I, _I, _I, _P, _I),
    "peaks": (_P, _I, _I, _I, _P, _P),
    "rotate": (_P, _I, _I, _I, _I, _I, _I, _I, _P, _P, _D, _P, _P, _P, _P, _P, _P, _P, _I),
    "attend": (_P, _I, _P, _P, _P, _I, _I, _I, _D, _I, _P, _I),
}


class Kernels:
    """The library's functions, by their names in csrc/ without the prefix `tunery_`; they release the GIL."""

    def __init__(self, library: ctypes.CDLL) -> None:
        declare_functions(library, _SIGNATURES)
        self.linear = library.tunery_linear
        self.embed = library.tunery_embed
        self.norm = library.tunery_norm
        self.swiglu = library.tunery_swiglu
        self.peaks = library.tunery_peaks
        self.rotate = library.tunery_rotate
        self.attend = library.tunery_attend


def load_kernels(folder: Path = _HERE) -> Kernels | None:
    """The kernels in `folder`, which run on torch's OpenMP threads, or None; `why_no_kernels` says why."""
    result = _open(folder)
    return result if isinstance(result, Kernels) else None


def why_no_kernels(folder: Path = _HERE) -> str:
    """Why `load_kernels` returns None, and what to do about it; empty when it does not."""
    result = _open(folder)
    return result if isinstance(result, str) else ""


@functools.cache
def _open(folder: Path) -> Kernels | str:
    return open_kernels(folder, Kernels)
