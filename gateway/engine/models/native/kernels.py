"""Owns finding and calling the native kernels (kernels.c, built with the package where there is a compiler); refuses CPUs they do not fit.

Tensors go in as they are: contiguous in their last dimension, on the CPU, of the dtype that the kernel's comment in kernels.c names.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING

from tunery.plugins.runtime.native import open_kernels

if TYPE_CHECKING:
    import torch

__all__ = [
    "PANEL",
    "Correction",
    "Kernels",
    "SegmentRow",
    "SpanRow",
    "WeightRow",
    "load_kernels",
    "why_no_kernels",
]

_HERE = Path(__file__).parent

PANEL = 48
"""Columns of a panel; a linear layer's outputs are padded up to whole panels."""


class WeightRow(Structure):
    """`struct weight`."""

    _fields_ = (
        ("data", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("format", c_int64),
        ("k", c_int64),
        ("panels", c_int64),
        ("group", c_int64),
    )


class Correction(Structure):
    """`struct correction`."""

    _fields_ = (
        ("a", c_void_p),
        ("b", c_void_p),
        ("gain", c_void_p),
        ("shift", c_void_p),
        ("rank", c_int64),
        ("k", c_int64),
        ("scale", c_double),
    )


class SegmentRow(Structure):
    """`struct segment`."""

    _fields_ = (("start", c_int64), ("end", c_int64), ("table", c_void_p), ("weight", c_double))


class SpanRow(Structure):
    """`struct span`."""

    _fields_ = (("start", c_int64), ("end", c_int64), ("length", c_int64), ("pages", c_void_p))


_P, _I, _D = c_void_p, c_int64, c_double
_SIGNATURES = {
    "tunery_linear": (POINTER(WeightRow), _I, _P, _I, _I, _P, _I, _P, _I, _I, _I, _P, _I, _I),
    "tunery_embed": (POINTER(WeightRow), _P, _I, _P),
    "tunery_norm": (_P, _P, _I, _I, _I, _P, _D, _P, _I),
    "tunery_swiglu": (_P, _I, _I, _I, _I, _P, _I),
    "tunery_peaks": (_P, _I, _I, _I, _P, _P),
    "tunery_rotate": (_P, _I, _I, _I, _I, _I, _I, _I, _P, _P, _D, _P, _P, _P, _P, _P, _P, _P, _I),
    "tunery_attend": (_P, _I, _P, _P, _P, _I, _I, _I, _D, _I, _P, _I),
}


class Kernels:
    """The library's functions, each named as in kernels.c without its prefix; ctypes lets other threads run meanwhile."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        self.linear = library.tunery_linear
        self.embed = library.tunery_embed
        self.norm = library.tunery_norm
        self.swiglu = library.tunery_swiglu
        self.rotate = library.tunery_rotate
        self.attend = library.tunery_attend
        self._peaks = library.tunery_peaks

    def argmax_logsumexp(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row of `logits` float32 [R, n], the index of the largest, int64 [R], and the log of the sum of exponentials, float32 [R]."""
        import torch

        rows, size = logits.shape
        best = torch.empty(rows, dtype=torch.int64)
        log_z = torch.empty(rows)
        self._peaks(logits.data_ptr(), logits.stride(0), rows, size, best.data_ptr(), log_z.data_ptr())
        return best, log_z


def load_kernels(folder: Path = _HERE) -> Kernels | None:
    """The kernels that were built into `folder`, or None; `why_no_kernels` says why. torch's OpenMP threads run them."""
    found = _found(folder)
    return found if isinstance(found, Kernels) else None


def why_no_kernels(folder: Path = _HERE) -> str:
    """Why `load_kernels` gives None, and what to do about it; empty when it does not."""
    found = _found(folder)
    return found if isinstance(found, str) else ""


@functools.cache
def _found(folder: Path) -> Kernels | str:
    return open_kernels(folder, Kernels)
