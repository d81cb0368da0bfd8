"""Pages of the KV cache: who holds them, what finds them, and that none is lost, whatever the order of calls."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.gateway.engine.hypothesis_settings import often
from tunery.gateway.engine.scheduling.page_allocator import (
    PAGE_SIZE,
    PageAllocator,
    next_page_key,
    pages_for,
    prefix_keys,
    prefix_root,
)


def text(letters: str) -> list[int]:
    """A page of tokens per letter."""
    return [ord(letter) for letter in letters for _ in range(PAGE_SIZE)]


@pytest.mark.parametrize(
    ("tokens", "count"), [(0, 0), (1, 1), (PAGE_SIZE, 1), (PAGE_SIZE + 1, 2), (10 * PAGE_SIZE, 10)]
)
def test_tokens_need_whole_pages(tokens: int, count: int) -> None:
    assert pages_for(tokens) == count


def test_a_key_stands_for_the_adapter_and_every_token_up_to_its_page() -> None:
    root = prefix_root("acme", "digest")
    keys = prefix_keys(root, text("abc"))
    assert len(set(keys)) == 3
    assert prefix_keys(root, text("abc") + [1] * (PAGE_SIZE - 1)) == keys  # the last page is not whole
    assert prefix_keys(root, text("abd"))[:2] == keys[:2]
    assert next_page_key(keys[1], text("c")) == keys[2]
    roots = {prefix_root(salt, digest) for salt in ("", "acme", "globex") for digest in ("", "other", "digest")}
    assert len(roots) == 9
    for other in (*(prefix_keys(each, text("abc")) for each in roots - {root}), prefix_keys(root, text("xbc"))):
        assert not set(other) & set(keys)


def test_one_token_that_differs_makes_another_page() -> None:
    tokens = text("a")
    changed = [*tokens[:-1], tokens[-1] + 1]
    assert prefix_keys(b"", tokens) != prefix_keys(b"", changed)


def test_what_nobody_holds_is_found_until_its_room_is_needed() -> None:
    pages = PageAllocator(4)
    keys = prefix_keys(b"d", text("abc"))
    mine = pages.allocate(3)
    for page, key in zip(mine, keys, strict=True):
        pages.publish(page, key)
    pages.release(mine)
    assert (pages.available, pages.usage) == (4, 0)
    assert pages.find_prefix(keys) == mine
    pages.allocate(1)  # the one that was never used
    assert pages.find_prefix(keys) == mine
    pages.allocate(1)  # the end of a prefix goes before its beginning
    assert pages.find_prefix(keys) == mine[:2]


def test_without_reuse_nothing_is_found() -> None:
    pages = PageAllocator(4, prefix_caching=False)
    mine = pages.allocate(1)
    pages.publish(mine[0], b"key")
    assert pages.find_prefix([b"key"]) == []
    pages.release(mine)
    assert pages.find_prefix([b"key"]) == []
    assert pages.available == 4


class AllocatorModel(RuleBasedStateMachine):
    """Sequences that take, share, publish and give back pages, against a model that knows what each page contains."""

    @initialize(count=st.integers(1, 12))
    def begin(self, count: int) -> None:
        self.pages = PageAllocator(count)
        self.held: list[tuple[list[int], list[bytes]]] = []  # pages and their keys
        self.contents: dict[int, bytes] = {}  # of published pages, by number
        self.kept: list[int] = []  # published and held by nobody, longest ago first

    def holders(self, page: int) -> int:
        return sum(page in pages for pages, _ in self.held)

    @rule(root=st.sampled_from([b"", b"d"]), letters=st.text("ab", min_size=1, max_size=5))
    def start(self, root: bytes, letters: str) -> None:
        keys = prefix_keys(root, text(letters))
        prefix = self.pages.find_prefix(keys)
        assert [self.contents[page] for page in prefix] == keys[: len(prefix)]
        assert len(prefix) == len(keys) or keys[len(prefix)] not in self.contents.values()
        idle = [page for page in prefix if not self.holders(page)]
        assert self.pages.count_unheld(prefix) == len(idle)
        missing = len(keys) - len(prefix)
        if missing + len(idle) > self.pages.available:
            return
        self.pages.share(prefix)
        self.kept = [page for page in self.kept if page not in prefix]
        self.held.append((prefix, keys))
        taken = self.pages.allocate(missing)
        assert len({*taken, *prefix}) == len(keys)
        assert all(0 < page <= self.pages.count and not self.holders(page) for page in taken)
        self.forget(taken)
        self.held[-1][0].extend(taken)

    def forget(self, taken: list[int]) -> None:
        """Kept pages are taken last, and the longest unused first."""
        forgotten = [page for page in taken if page in self.contents]
        assert forgotten == self.kept[: len(forgotten)]
        free = self.pages.count - len({page for pages, _ in self.held for page in pages}) - len(self.kept)
        assert len(forgotten) == max(0, len(taken) - free)
        self.kept = self.kept[len(forgotten) :]
        for page in forgotten:
            del self.contents[page]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        for page, key in zip(*data.draw(st.sampled_from(self.held)), strict=True):
            if page not in self.contents and key not in self.contents.values():
                self.contents[page] = key
            self.pages.publish(page, key)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        pages, _ = self.held[index := data.draw(st.integers(0, len(self.held) - 1))]
        alone = [page for page in pages if self.holders(page) == 1]
        assert self.pages.count_held_once(pages) == len(alone)
        before = self.pages.available
        del self.held[index]
        self.pages.release(pages)
        assert self.pages.available == before + len(alone)
        self.kept += [page for page in reversed(alone) if page in self.contents]

    @invariant()
    def none_is_lost(self) -> None:
        if hasattr(self, "pages"):
            held = {page for pages, _ in self.held for page in pages}
            assert self.pages.available == self.pages.count - len(held)
            assert self.pages.usage == pytest.approx(len(held) / self.pages.count)

    @invariant()
    def keys_are_exact(self) -> None:
        if hasattr(self, "pages"):
            for page, key in self.contents.items():
                assert self.pages.find_prefix([key]) == [page]

    @invariant()
    def strangers_share_only_what_is_the_same(self) -> None:
        if hasattr(self, "pages"):
            keys: dict[int, bytes] = {}
            for pages, own in self.held:
                for page, key in zip(pages, own, strict=True):
                    assert keys.setdefault(page, key) == key

    def teardown(self) -> None:
        while hasattr(self, "held") and self.held:
            self.pages.release(self.held.pop()[0])
        if hasattr(self, "pages"):
            assert self.pages.available == self.pages.count
            assert len(set(self.pages.allocate(self.pages.count))) == self.pages.count


AllocatorModel.TestCase.settings = often(100, steps=40)
TestAllocatorModel = pytest.mark.slow(AllocatorModel.TestCase)
