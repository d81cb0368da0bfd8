"""The engine's loop when it has nothing to do."""

from __future__ import annotations

import pytest

from tunery.gateway.engine.process import GROWTH, _tidied
from tunery.plugins.runtime.allocator import resident_bytes, tune_allocator


@pytest.mark.skipif(not tune_allocator(), reason="another allocator than glibc's")
def test_memory_that_an_idle_engine_does_not_need_is_handed_back() -> None:
    known = _tidied(0)
    block = bytearray(b"x") * (4 * GROWTH)
    assert _tidied(known) > known + GROWTH, "it is in use"
    del block
    assert resident_bytes() > known + GROWTH, "freed memory stays in a process that computes"
    assert _tidied(known) <= known + GROWTH
    assert resident_bytes() <= known + GROWTH
