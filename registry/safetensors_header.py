"""Owns reading what a safetensors file says of itself, and scanning its numbers; needs neither torch nor the whole file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from tunery.registry.errors import ArtifactRefused

__all__ = ["TensorEntry", "nonfinite_tensor", "read_header"]

MAX_HEADER = 100 * 2**20
_SCAN = 1 << 22

_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_EXPONENTS = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}


class TensorEntry(msgspec.Struct, frozen=True):
    """One tensor: `begin` and `end` are byte offsets from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Tensors by name; raise ArtifactRefused when the file is not whole and sound."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise _damaged(path, "its header is cut off or impossible")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        entries = {name: _entry(value, 8 + length) for name, value in header.items() if name != "__metadata__"}
    except (ValueError, ArithmeticError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, "its header cannot be read") from error
    _check_layout(path, entries, 8 + length, size)
    return entries


def nonfinite_tensor(path: Path, entries: dict[str, TensorEntry]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, or None; reads the file in pieces."""
    with path.open("rb") as file:
        for name, entry in entries.items():
            file.seek(entry.begin)
            if any(_nonfinite(piece, entry.dtype) for piece in _pieces(file, entry)):
                return name
    return None


def _entry(value: dict[str, Any], data: int) -> TensorEntry:
    begin, end = value["data_offsets"]
    return TensorEntry(
        str(value["dtype"]), tuple(int(size) for size in value["shape"]), data + int(begin), data + int(end)
    )


def _check_layout(path: Path, entries: dict[str, TensorEntry], data: int, size: int) -> None:
    """Every tensor as long as its shape says, one after the other, up to the end of the file."""
    at = data
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.dtype not in _SIZES:
            raise _damaged(path, f"{name} has the unknown dtype {entry.dtype}")
        if min(entry.shape, default=0) < 0 or entry.end - entry.begin != prod(entry.shape) * _SIZES[entry.dtype]:
            raise _damaged(path, f"{name} is not as long as its shape says")
        if entry.begin != at:
            raise _damaged(path, f"{name} overlaps another tensor or leaves a gap")
        at = entry.end
    if at != size:
        raise _damaged(path, f"it is {size:,} bytes long and should be {at:,}")


def _pieces(file: Any, entry: TensorEntry) -> Iterator[bytes]:
    left = entry.end - entry.begin
    while left > 0:
        piece = file.read(min(left, _SCAN))
        if not piece:
            return
        left -= len(piece)
        yield piece


def _nonfinite(piece: bytes, dtype: str) -> bool:
    """Whether an exponent is all ones, which is what NaN and the infinities have in common."""
    import numpy as np  # only here: listing what a registry holds must not wait for it

    if dtype not in _EXPONENTS:
        return False
    kind, exponent = _EXPONENTS[dtype]
    bits = np.frombuffer(piece, kind)
    return bool(((bits & exponent) == exponent).any())


def _damaged(path: Path, why: str) -> ArtifactRefused:
    return ArtifactRefused(f"{path.name} is not a sound safetensors file: {why}", code="artifact_truncated")
