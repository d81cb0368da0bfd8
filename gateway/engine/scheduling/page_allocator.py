"""Owns which pages of the key-value memory are free, used, or kept for their prefix; refuses to know what is stored in them.

Pages of PAGE_SIZE tokens, as in PagedAttention (arXiv 2309.06180). A page whose tokens are all known has a key: a digest of the adapter's
identity and of every token up to its end. Nobody's page with a key stays until its room is needed, so that whoever comes with the same
beginning on the same adapter shares it. Page 0 is a scratch page that nobody owns.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

__all__ = ["PAGE_SIZE", "PageAllocator", "next_key", "pages_for", "prefix_keys"]

PAGE_SIZE = 16
"""Tokens of a page; the native kernels are compiled for this many (PAGE in their C sources)."""


def pages_for(tokens: int) -> int:
    """How many pages `tokens` need."""
    return -(-tokens // PAGE_SIZE)


def next_key(before: bytes, tokens: Sequence[int]) -> bytes:
    """The key of the page with `tokens` that follows the page with the key `before`."""
    return hashlib.blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


def prefix_keys(identity: str, tokens: Sequence[int]) -> list[bytes]:
    """The keys of all whole pages of `tokens`, computed on the adapters that `identity` stands for."""
    keys: list[bytes] = []
    before = identity.encode()
    for start in range(0, len(tokens) - PAGE_SIZE + 1, PAGE_SIZE):
        before = next_key(before, tokens[start : start + PAGE_SIZE])
        keys.append(before)
    return keys


class PageAllocator:
    """`count` pages, numbered from 1. `reuse` False forgets every page when its last holder leaves."""

    def __init__(self, count: int, *, reuse: bool = True) -> None:
        self.count = count
        self.reuse = reuse
        self._free = list(range(count, 0, -1))
        self._holders = [0] * (count + 1)
        self._key_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def capacity(self) -> int:
        """Tokens that fit in all."""
        return self.count * PAGE_SIZE

    @property
    def used(self) -> float:
        """Share of the pages that somebody holds, 0 to 1."""
        return 1 - self.available / self.count

    @property
    def available(self) -> int:
        """Pages that `take` could give now."""
        return len(self._free) + len(self._kept)

    def take(self, count: int) -> list[int]:
        """Hold `count` new pages, the longest unused kept ones last; the caller has looked at `available`."""
        taken = []
        for _ in range(count):
            page = self._free.pop() if self._free else self._forget_oldest()
            self._holders[page] = 1
            taken.append(page)
        return taken

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The pages of the longest known beginning of `keys`; they are not held yet."""
        found = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            found.append(page)
        return found

    def idle(self, pages: Sequence[int]) -> int:
        """How many of `pages` nobody holds, so that sharing them leaves fewer `available`."""
        return sum(self._holders[page] == 0 for page in pages)

    def sole(self, pages: Sequence[int]) -> int:
        """How many of `pages` have one holder, so that releasing them leaves more `available`."""
        return sum(self._holders[page] == 1 for page in pages)

    def share(self, pages: Sequence[int]) -> None:
        """Hold pages that `find` returned."""
        for page in pages:
            if self._holders[page] == 0:
                del self._kept[page]
            self._holders[page] += 1

    def publish(self, page: int, key: bytes) -> None:
        """Say what a held page contains; the first page with a key keeps it."""
        if self.reuse and key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Stop holding pages, given in the order of their tokens; the end of a prefix is forgotten before its beginning."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if page in self._key_of:
                    self._kept[page] = None
                else:
                    self._free.append(page)

    def _forget_oldest(self) -> int:
        page, _ = self._kept.popitem(last=False)
        del self._page_of[self._key_of.pop(page)]
        return page
