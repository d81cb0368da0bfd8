"""Owns near-equality of texts: MinHash signatures over shingles of three words, and an index of them.

Broder, "On the resemblance and containment of documents" (1997). The share of equal places in two signatures estimates the share of
shingles that two texts have in common. Only representatives are indexed: a text near to one that is there is not, and of a
band that many have only the first few are compared, so that neither near-equal rows nor a shared instruction make it quadratic.
"""

from __future__ import annotations

import re
import zlib
from typing import Generic, TypeVar

import numpy as np

__all__ = ["NEAR", "PERMUTATIONS", "SimilarIndex", "signature"]

PERMUTATIONS = 64
NEAR = 0.7
"""The share of common shingles from which two rows are called near duplicates: a word changed in a row of twenty."""

_BANDS, _ROWS = 12, 5  # two texts at 0.7 meet in a band with a probability of 0.89, at 0.8 of 0.99, at 0.3 of 0.03
_WIDTH = 4 * _ROWS  # bytes
_BUCKET = 32
"""Items that are compared for one band. What thousands of rows share, such as an instruction, says nothing; the other bands do."""

_MIN_WORDS = 8
_BLOCK = 2048
"""Shingles that are mixed at a time."""
_MOST_WORDS_KEPT = 1 << 20
_WORD = re.compile(r"\w+")
_random = np.random.default_rng(20250101)
_FACTORS = _random.integers(1, 2**63, size=(PERMUTATIONS, 1), dtype=np.uint64) | np.uint64(1)
_OFFSETS = _random.integers(0, 2**63, size=(PERMUTATIONS, 1), dtype=np.uint64)
_PLACES = _random.integers(1, 2**63, size=3, dtype=np.uint64) | np.uint64(1)

Item = TypeVar("Item")


class _WordHashes(dict[str, int]):
    """The hash of each word seen, the same in every process."""

    def __missing__(self, word: str) -> int:
        if len(self) > _MOST_WORDS_KEPT:
            self.clear()
        value = self[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        return value


_hashes = _WordHashes()


def signature(text: str) -> bytes | None:
    """64 × uint32 as bytes; None for a text of fewer than eight words, where one word makes all the difference."""
    words = _WORD.findall(text.lower())
    if len(words) < _MIN_WORDS:
        return None
    numbers = np.fromiter(map(_hashes.__getitem__, words), dtype=np.uint64, count=len(words))
    shingles = numbers[:-2] * _PLACES[0] + numbers[1:-1] * _PLACES[1] + numbers[2:] * _PLACES[2]
    shingles ^= shingles >> np.uint64(29)
    lowest = np.full(PERMUTATIONS, np.iinfo(np.uint64).max)
    for start in range(0, len(shingles), _BLOCK):  # what is mixed at a time takes 1 MB, however long the text is
        mixed = (shingles[np.newaxis, start : start + _BLOCK] * _FACTORS + _OFFSETS) >> np.uint64(32)
        np.minimum(lowest, mixed.min(axis=1), out=lowest)
    packed: bytes = lowest.astype(np.uint32).tobytes()
    return packed


class SimilarIndex(Generic[Item]):
    """Items by the signature of their text: those that agree in a band of places are compared."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[int]] = {}
        self._items: list[Item] = []
        self._signatures: list[bytes] = []

    def find(self, wanted: bytes) -> tuple[Item, float] | None:
        """The first item near to a signature, and the estimated share of shingles in common; None where there is none."""
        found = sorted({number for key in _bands(wanted) for number in self._buckets.get(key, ())})
        if not found:
            return None
        theirs = np.frombuffer(b"".join(self._signatures[number] for number in found), dtype=np.uint32)
        shares = (theirs.reshape(-1, PERMUTATIONS) == np.frombuffer(wanted, dtype=np.uint32)).mean(axis=1)
        near = np.flatnonzero(shares >= NEAR)
        return (self._items[found[near[0]]], float(shares[near[0]])) if near.size else None

    def add(self, wanted: bytes, item: Item) -> None:
        """Keep an item; call it for those that `find` finds nothing for."""
        for key in _bands(wanted):
            bucket = self._buckets.setdefault(key, [])
            if len(bucket) < _BUCKET:
                bucket.append(len(self._items))
        self._items.append(item)
        self._signatures.append(wanted)


def _bands(wanted: bytes) -> list[int]:
    return [hash((band, wanted[band * _WIDTH : (band + 1) * _WIDTH])) for band in range(_BANDS)]
