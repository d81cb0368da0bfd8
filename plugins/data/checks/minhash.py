"""Similarity of texts: MinHash signatures over shingles of three words, and a locality-sensitive index of them.

Broder, "On the resemblance and containment of documents" (1997): the share of equal positions in two signatures
estimates the share of shingles that the texts have in common.

datasketch is not used because its buckets grow without bound: where all rows share an instruction, every lookup
compares with every row, which is quadratic. Here a text similar to an indexed one is not indexed, and a bucket keeps
only its first few items.
"""

from __future__ import annotations

import re
import zlib
from typing import Generic, TypeVar

import numpy as np

__all__ = ["NEAR", "PERMUTATIONS", "SimilarIndex", "signature"]

PERMUTATIONS = 64
NEAR = 0.7
"""Share of common shingles from which two rows are near duplicates: one word changed in a row of twenty."""

_BANDS, _BAND_SIZE = 12, 5  # texts at 0.7 share a band with a probability of 0.89, at 0.8 of 0.99, at 0.3 of 0.03
_BAND_BYTES = 4 * _BAND_SIZE
_BUCKET = 32
"""Items compared per band.

A band that thousands of rows share, such as an instruction, says nothing; the other bands do.
"""

_MIN_WORDS = 8
_BLOCK = 2048
"""Shingles hashed at a time."""
_MAX_CACHED_WORDS = 1 << 20
_WORD = re.compile(r"\w+")
_random = np.random.default_rng(20250101)
_FACTORS = _random.integers(1, 2**63, size=(PERMUTATIONS, 1), dtype=np.uint64) | np.uint64(1)
_OFFSETS = _random.integers(0, 2**63, size=(PERMUTATIONS, 1), dtype=np.uint64)
_POSITION_FACTORS = _random.integers(1, 2**63, size=3, dtype=np.uint64) | np.uint64(1)

Item = TypeVar("Item")


class _WordHashes(dict[str, int]):
    """The hash of each word seen, the same in every process."""

    def __missing__(self, word: str) -> int:
        if len(self) > _MAX_CACHED_WORDS:
            self.clear()
        value = self[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        return value


_hashes = _WordHashes()


def signature(text: str) -> bytes | None:
    """The MinHash of a text: 64 x uint32 as bytes.

    None for fewer than eight words, where one word makes all the difference.
    """
    words = _WORD.findall(text.lower())
    if len(words) < _MIN_WORDS:
        return None
    numbers = np.fromiter(map(_hashes.__getitem__, words), dtype=np.uint64, count=len(words))
    shingles = (
        numbers[:-2] * _POSITION_FACTORS[0] + numbers[1:-1] * _POSITION_FACTORS[1] + numbers[2:] * _POSITION_FACTORS[2]
    )
    shingles ^= shingles >> np.uint64(29)
    lowest = np.full(PERMUTATIONS, np.iinfo(np.uint64).max)
    for start in range(0, len(shingles), _BLOCK):  # a block takes 1 MB, however long the text is
        hashed = (shingles[np.newaxis, start : start + _BLOCK] * _FACTORS + _OFFSETS) >> np.uint64(32)
        np.minimum(lowest, hashed.min(axis=1), out=lowest)
    packed: bytes = lowest.astype(np.uint32).tobytes()
    return packed


class SimilarIndex(Generic[Item]):
    """Items by the signature of their text. Only items that share a band with a signature are compared with it."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[int]] = {}
        self._items: list[Item] = []
        self._signatures: list[bytes] = []

    def find(self, signature: bytes) -> tuple[Item, float] | None:
        """The first item similar to a signature, and the estimated share of common shingles (NEAR to 1), or None."""
        candidates = sorted({number for key in _bands(signature) for number in self._buckets.get(key, ())})
        if not candidates:
            return None
        theirs = np.frombuffer(b"".join(self._signatures[number] for number in candidates), dtype=np.uint32)
        shares = (theirs.reshape(-1, PERMUTATIONS) == np.frombuffer(signature, dtype=np.uint32)).mean(axis=1)
        near = np.flatnonzero(shares >= NEAR)
        return (self._items[candidates[near[0]]], float(shares[near[0]])) if near.size else None

    def add(self, signature: bytes, item: Item) -> None:
        """Index an item. Call it only where `find` returns None."""
        for key in _bands(signature):
            bucket = self._buckets.setdefault(key, [])
            if len(bucket) < _BUCKET:
                bucket.append(len(self._items))
        self._items.append(item)
        self._signatures.append(signature)


def _bands(signature: bytes) -> list[int]:
    return [hash((band, signature[band * _BAND_BYTES : (band + 1) * _BAND_BYTES])) for band in range(_BANDS)]
