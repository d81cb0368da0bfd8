"""Measure how much memory an engine takes: `python -m tunery.gateway.bench.memory CONFIG FOLDER` prints JSON.

A process of its own, so that nothing another measurement left counts. Grown is resident memory after a batch of short
requests has run on 32 adapters less resident memory before the base was loaded, when all libraries were there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from tunery.plugins.runtime.compute import prepare_compute

__all__ = ["main"]

ADAPTERS = 32


def main() -> None:
    """Measure and print."""
    prepare_compute()
    import safetensors.torch
    import torch

    from tunery.gateway.bench.engines import Engines
    from tunery.gateway.bench.settings import Workload
    from tunery.gateway.bench.workload import figures
    from tunery.gateway.engine.config import EngineConfig

    config = msgspec.json.decode(sys.argv[1], type=EngineConfig)
    engines = Engines(config, Path(sys.argv[2]))
    # Threads, buffers of the libraries, and everything else that is no one's weights.
    torch.randn(512, 512).bfloat16() @ torch.randn(512, 512).bfloat16()
    _ = safetensors.torch
    before = _resident()
    with engines.start() as driver:
        driver.load(engines.adapters(driver, ADAPTERS))
        figures(driver, engines.adapters(driver, ADAPTERS), Workload(adapters=ADAPTERS, prompt=8, new=8))
        grown = _resident() - before
        own = {"base": driver.core.model.base_bytes, "adapters": driver.core.residency.bytes}
    sys.stdout.write(json.dumps({"grown": grown, **own}) + "\n")


def _resident() -> int:
    """Bytes of this process that are in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmRSS: memory is measured on Linux only")


if __name__ == "__main__":
    main()
