"""The page allocator of the KV cache, with prefix caching: which pages are free, held, or kept for their prefix.

Pages hold PAGE_SIZE tokens each, as in PagedAttention (arXiv 2309.06180). A page whose tokens are all known has a key:
a hash of whose it is, of the composition it was computed on and of every token up to its end. A page with a key that
nobody holds is kept until its room is needed, so that a request of the same tenant with the same beginning on the same
adapters can share it: another tenant's cannot even learn from its time that somebody has asked this before. Page 0 is
a scratch page and is never allocated.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

__all__ = ["PAGE_SIZE", "PageAllocator", "next_page_key", "pages_for", "prefix_keys", "prefix_root"]

PAGE_SIZE = 16
"""Tokens of a page; the native kernels are compiled for this many (PAGE in their C sources)."""


def pages_for(tokens: int) -> int:
    """How many pages `tokens` tokens need."""
    return -(-tokens // PAGE_SIZE)


def next_page_key(previous: bytes, tokens: Sequence[int]) -> bytes:
    """The key, 16 bytes, of the page with `tokens` that follows the page with key `previous`."""
    return hashlib.blake2b(previous + array("q", tokens).tobytes(), digest_size=16).digest()


def prefix_root(salt: str, digest: str) -> bytes:
    """What the key of a first page is made from: the salt of those who share it, and the composition's digest."""
    return f"{salt}\0{digest}".encode()


def prefix_keys(root: bytes, tokens: Sequence[int]) -> list[bytes]:
    """The keys of all whole pages of `tokens` that begin at this root."""
    keys: list[bytes] = []
    previous = root
    for start in range(0, len(tokens) - PAGE_SIZE + 1, PAGE_SIZE):
        previous = next_page_key(previous, tokens[start : start + PAGE_SIZE])
        keys.append(previous)
    return keys


class PageAllocator:
    """`count` pages, numbered from 1.

    Without `prefix_caching`, a page is forgotten when its last holder releases it.
    """

    def __init__(self, count: int, *, prefix_caching: bool = True) -> None:
        self.count = count
        self.prefix_caching = prefix_caching
        self._free = list(range(count, 0, -1))
        self._holders = [0] * (count + 1)
        self._key_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def capacity(self) -> int:
        """Tokens that fit into all pages."""
        return self.count * PAGE_SIZE

    @property
    def usage(self) -> float:
        """Share of the pages that are held, 0 to 1."""
        return 1 - self.available / self.count

    @property
    def available(self) -> int:
        """Pages that `allocate` could give now: free ones and those kept for their prefix."""
        return len(self._free) + len(self._kept)

    def allocate(self, count: int) -> list[int]:
        """Hold `count` new pages, evicting the least recently used kept ones if need be; at most `available`."""
        pages = []
        for _ in range(count):
            page = self._free.pop() if self._free else self._evict_oldest()
            self._holders[page] = 1
            pages.append(page)
        return pages

    def find_prefix(self, keys: Sequence[bytes]) -> list[int]:
        """The cached pages of the longest known prefix of `keys`; `share` holds them."""
        pages = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def count_unheld(self, pages: Sequence[int]) -> int:
        """How many of `pages` nobody holds: sharing them leaves that many fewer `available`."""
        return sum(self._holders[page] == 0 for page in pages)

    def count_held_once(self, pages: Sequence[int]) -> int:
        """How many of `pages` have a single holder: its releasing them makes that many more `available`."""
        return sum(self._holders[page] == 1 for page in pages)

    def share(self, pages: Sequence[int]) -> None:
        """Hold pages that `find_prefix` returned."""
        for page in pages:
            if self._holders[page] == 0:
                del self._kept[page]
            self._holders[page] += 1

    def publish(self, page: int, key: bytes) -> None:
        """Enter a held page whose tokens are all computed into the prefix cache; the first page with a key stays."""
        if self.prefix_caching and key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Stop holding pages, given in the order of their tokens; the end of a prefix is evicted
        before its beginning."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if page in self._key_of:
                    self._kept[page] = None
                else:
                    self._free.append(page)

    def _evict_oldest(self) -> int:
        page, _ = self._kept.popitem(last=False)
        del self._page_of[self._key_of.pop(page)]
        return page
