"""What `tunery.gateway.engine` exports does not change unnoticed, is sorted, documented and light to import."""

from __future__ import annotations

import subprocess
import sys

import tunery.gateway.engine as engine

EXPORTED = [
    "AdapterSource",
    "Constraint",
    "Embed",
    "Engine",
    "EngineConfig",
    "FakeEngine",
    "Generate",
    "Outage",
    "SamplingParams",
    "WeightedAdapter",
]


def test_the_exports_are_these() -> None:
    assert engine.__all__ == EXPORTED
    assert all(getattr(engine, name).__doc__ for name in EXPORTED)


def test_importing_the_engines_interface_does_not_import_torch() -> None:
    code = "import sys, tunery.gateway.engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
