"""OpenAI's own clients, unmodified, through every step of their guides on fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.environments import CLIENTS, run_script
from tests.gateway.serve_process import ServeProcess
from tunery.gateway.engine.models.native.kernels import load_kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(load_kernels() is None, reason="takes many minutes without the native kernels"),
]

STEPS = {"train", "events", "checkpoints", "results", "model", "dpo", "cancel", "jobs", "errors", "delete"}
SHORTER = ("openai-1", "openai-2")
"""Clients that start a DPO job but do not train it, since that takes half a minute and sends the same as `openai-3`."""


@pytest.mark.parametrize("client", CLIENTS)
def test_the_guides_run_with(client: str, server: ServeProcess, base_folder: Path, tmp_path: Path) -> None:
    script, more = ("openai_node.mjs", set()) if client == "openai-node" else ("openai_python.py", {"async"})
    skip = {"dpo"} if client in SHORTER else set()
    passed = run_script(script, client, server, base_folder.name, tmp_path, skip=skip)
    assert passed == (STEPS | more) - skip
