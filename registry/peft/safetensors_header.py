"""Read the header of a safetensors file and scan its numbers, without torch and without holding the file in memory.

The `safetensors` library checks a header too, but opens the file as torch or numpy tensors and accepts repeated names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from tunery.registry.errors import ArtifactRefused

__all__ = ["TensorEntry", "nonfinite_tensor", "read_header", "read_json_header"]

MAX_HEADER = 100 * 2**20
_SCAN = 1 << 22
_METADATA = "__metadata__"

_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_LIMITS = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F7F8000),
    "F64": ("<u8", 0x47EFEFFFF0000000),
}
"""The bits, without the sign, of the smallest number that is infinite in bfloat16, or in a smaller format itself."""


class TensorEntry(msgspec.Struct, frozen=True):
    """One tensor: `begin` and `end` are byte offsets from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Tensors by name; raise ArtifactRefused (artifact_truncated) when the file is cut off or inconsistent."""
    header, data = read_json_header(path)
    try:
        entries = {name: _entry(value, data) for name, value in header.items() if name != _METADATA}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, "its header cannot be read") from error
    _check_layout(path, entries, data, path.stat().st_size)
    return entries


def read_json_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header as it is in the file, and the data's offset; raise ArtifactRefused (artifact_truncated)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise _damaged(path, "its header is cut off or malformed")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_distinct)
        _check_metadata(header.get(_METADATA))
    except (ValueError, ArithmeticError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, "its header cannot be read") from error
    return header, 8 + length


def nonfinite_tensor(path: Path, entries: dict[str, TensorEntry]) -> str | None:
    """The first tensor that holds NaN, infinity, or a number too large for bfloat16, or None; reads in pieces."""
    with path.open("rb") as file:
        for name, entry in entries.items():
            file.seek(entry.begin)
            if any(_nonfinite(piece, entry.dtype) for piece in _pieces(file, entry)):
                return name
    return None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with distinct names; of two tensors with one name, readers would take different ones."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a name is there twice")
    return value


def _check_metadata(metadata: Any) -> None:
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise ValueError("the metadata are not strings")


def _entry(value: dict[str, Any], data: int) -> TensorEntry:
    begin, end = (_whole(number) for number in value["data_offsets"])
    shape = tuple(_whole(size) for size in value["shape"])
    return TensorEntry(str(value["dtype"]), shape, data + begin, data + end)


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError("no size or offset")
    return number


def _check_layout(path: Path, entries: dict[str, TensorEntry], data: int, size: int) -> None:
    """Raise unless every tensor is as long as its shape says, one after the other, up to the end of the file."""
    at = data
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.dtype not in _SIZES:
            raise _damaged(path, f"{name} has the unknown dtype {entry.dtype}")
        if entry.end - entry.begin != prod(entry.shape) * _SIZES[entry.dtype]:
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
    """Whether a number is NaN, infinite or too large for bfloat16; without signs, floats are ordered as their bits."""
    import numpy as np  # only here: listing what a registry holds must not wait for it

    if dtype not in _LIMITS:
        return False
    kind, limit = _LIMITS[dtype]
    bits = np.frombuffer(piece, kind)
    return bool(((bits & np.iinfo(bits.dtype).max // 2) >= limit).any())


def _damaged(path: Path, why: str) -> ArtifactRefused:
    return ArtifactRefused(f"{path.name} is not a sound safetensors file: {why}", code="artifact_truncated")
