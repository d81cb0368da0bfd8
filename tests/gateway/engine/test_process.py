"""The engine process while it is idle."""

from __future__ import annotations

import pytest

from tunery.gateway.engine.process import TRIM_AFTER, _trim
from tunery.plugins.runtime.allocator import resident_bytes, tune_allocator


@pytest.mark.skipif(not tune_allocator(), reason="another allocator than glibc's")
def test_memory_that_an_idle_engine_does_not_need_is_handed_back() -> None:
    known = _trim(0)
    block = bytearray(b"x") * (4 * TRIM_AFTER)
    assert _trim(known) > known + TRIM_AFTER, "it is in use"
    del block
    assert resident_bytes() > known + TRIM_AFTER, "freed memory stays in a process that computes"
    assert _trim(known) <= known + TRIM_AFTER
    assert resident_bytes() <= known + TRIM_AFTER
