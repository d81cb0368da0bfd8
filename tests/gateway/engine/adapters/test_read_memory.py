"""Reading an adapter leaks no memory: a server that runs for months reads them millions of times."""

from __future__ import annotations

import gc
import itertools
import sys
from pathlib import Path

import torch

from tests.registry.artifacts import HIDDEN, make_adapter
from tunery.gateway.engine.adapters.adapter import AdapterShape
from tunery.gateway.engine.adapters.reader import read_adapter
from tunery.gateway.engine.composition import AdapterSource

SHAPE = AdapterShape(
    {
        "model.embed_tokens": {"weight": (20, HIDDEN)},
        "model.layers.0.q_proj": {"weight": (HIDDEN, HIDDEN)},
        "model.layers.0.up_proj": {"weight": (2 * HIDDEN, HIDDEN)},
    },
    "model.embed_tokens",
    "lm_head",
    True,
)
TIMES = 50


def test_reading_the_same_adapter_again_and_again_keeps_no_objects(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    source = AdapterSource("d", "acme/a", 1, {path.name: str(path) for path in folder.iterdir()})

    def read(times: int) -> int:
        for _ in range(times):
            read_adapter(source, SHAPE, dtype=torch.float32, device=torch.device("cpu"))
        gc.collect()
        return sys.getallocatedblocks()

    # A leak shows every time; a thread that another test has left behind allocates once in a while.
    counts = [read(TIMES) for _ in range(4)]
    growth = [after - before for before, after in itertools.pairwise(counts)]
    assert min(growth) < TIMES, growth  # not even one for each time
