"""The script of OpenAI's guides, unchanged, against a real server; the guides' clients run on the real small base."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.serve_process import TINY, start_server
from tunery.plugins.testing import write_rows
from tunery.registry.home import Home

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_script_of_a_guide_trains_a_model_and_asks_it(tiny_base_folder: Path, home: Home, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    name = tiny_base_folder.name
    with start_server(tmp_path, home, tiny_base_folder, *TINY) as server:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "openai_finetune.py"), str(rows)],
            env=os.environ
            | {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "x", "MODEL": name, "EPOCHS": "50"},
            capture_output=True,
            text=True,
            timeout=1100,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"rows.jsonl: {rows.stat().st_size:,} bytes as file-")
    assert lines[1].startswith("ftjob-")
    assert "  The job has successfully completed" in lines
    assert any(line.startswith(f"ft:{name}:default:tickets:") and " tokens in " in line for line in lines)
    assert lines[-1]


@pytest.mark.slow
def test_the_script_says_what_is_wrong_with_the_rows(tiny_base_folder: Path, home: Home, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": []}\n')
    with start_server(tmp_path, home, tiny_base_folder, "--quant", "none", "--no-worker") as server:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "openai_finetune.py"), str(bad)],
            env=os.environ | {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "x"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert "bad.jsonl cannot be trained on" in done.stderr
    assert "bad.jsonl:1" in done.stderr
