"""What is imported before `tunery serve` is ready."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.models.native.kernels import load_kernels

HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "torch._dynamo", "torch._inductor", "sympy"}
GATEWAY = "import sys; from tunery.gateway import serve, app"
API = """
import pkgutil, sys
from importlib import import_module
from tunery.gateway import api
for module in pkgutil.walk_packages(api.__path__, "tunery.gateway.api."):
    import_module(module.name)
"""
ENGINE = """
import sys
from msgspec import json
from tunery.gateway.engine import process
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.core import EngineCore
core = EngineCore(json.decode(sys.argv[1], type=EngineConfig), lambda event: None)
core.warm_up()
core.close()
"""


def imported(code: str, *arguments: str) -> list[str]:
    """The heavy modules that a fresh process has after running `code`."""
    code += f"\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [name for name in HEAVY if repr(name) in done.stdout.splitlines()[-1]]


@pytest.mark.slow
@pytest.mark.parametrize("code", [GATEWAY, API], ids=["gateway", "every module of the API"])
def test_the_gateway_imports_nothing_heavy(code: str) -> None:
    assert imported(code) == []


@pytest.mark.slow
@pytest.mark.skipif(load_kernels() is None, reason="the native kernels are not built, or not for this CPU")
def test_an_engine_that_finds_its_base_packed_imports_torch_and_nothing_else_heavy(
    tiny_base_folder: Path, tmp_path: Path
) -> None:
    config = EngineConfig(
        base_folder=str(tiny_base_folder), base_name="tiny", base_digest="0", cache_folder=str(tmp_path), max_batch=2
    )
    encoded = msgspec.json.encode(config).decode()
    imported(ENGINE, encoded)
    assert imported(ENGINE, encoded) == ["torch"]
