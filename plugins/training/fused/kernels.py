"""Find training's native kernels, built from csrc/ where there is a C compiler, and bind their functions and structs.

Only native_ops.py calls them: it takes tensors and checks dtype, layout and shape.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from pathlib import Path
from typing import Any

from tunery.plugins.runtime.native import declare_functions, open_kernels

__all__ = ["Kernels", "NF4Struct", "SequencesStruct", "TermStruct", "load_kernels"]

_P, _I, _D = c_void_p, c_int64, c_double


class SequencesStruct(Structure):
    """`struct sequences` in csrc/attention.c: how packed sequences lie."""

    _fields_ = (
        *((name, c_void_p) for name in ("start", "length", "seen", "first", "index", "weights")),
        *((name, c_int64) for name in ("count", "tokens", "heads", "groups", "size")),
    )


class NF4Struct(Structure):
    """`struct nf4_weight` in csrc/matmul.c: a weight that bitsandbytes keeps in four bits."""

    _fields_ = (
        *((name, c_void_p) for name in ("elements", "scales", "values", "steps", "levels")),
        ("offset", c_double),
        ("group", c_int64),
    )


class TermStruct(Structure):
    """`struct term` in csrc/matmul.c: one product of a sum."""

    _fields_ = (
        *((name, c_void_p) for name in ("a", "b", "packed")),
        *((name, c_int64) for name in ("a_row", "b_row", "depth", "turned", "start")),
    )


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "attend": (_P, _P, _P, _P, _P, POINTER(SequencesStruct), _D),
    "attend_backward": (_P, _P, _P, _P, _P, _P, _P, _P, POINTER(SequencesStruct), _D),
    "cross_entropy": (_P, _P, _P, _P, _I, _I, _I),
    "norm": (_P, _P, _P, _P, _I, _I, _D),
    "norm_backward": (_P, _P, _P, _P, _P, _P, _P, _I, _I),
    "product": (_P, _I, _P, _I, _P, _I, _I, _I),
    "rotate": (_P, _P, _P, _I, _I, _I, _D),
    "swiglu": (_P, _P, _P, _I),
    "swiglu_backward": (_P, _P, _P, _P, _P, _I),
}


class Kernels:
    """The library's functions, by their names in csrc/ without the prefix `tunery_`.

    `has_amx` says that the CPU multiplies tiles of bfloat16, with which torch's own products are faster.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        declare_functions(library, _SIGNATURES)
        self.attend = library.tunery_attend
        self.attend_backward = library.tunery_attend_backward
        self.cross_entropy = library.tunery_cross_entropy
        self.norm = library.tunery_norm
        self.norm_backward = library.tunery_norm_backward
        self.product = library.tunery_product
        self.rotate = library.tunery_rotate
        self.swiglu = library.tunery_swiglu
        self.swiglu_backward = library.tunery_swiglu_backward
        self.has_amx = bool(library.tunery_has_tiles())


@functools.cache
def load_kernels(folder: Path = Path(__file__).parent) -> Kernels | None:
    """The kernels that were built into `folder`, or None if they were not or this CPU cannot run them."""
    result = open_kernels(folder, Kernels)
    return result if isinstance(result, Kernels) else None
