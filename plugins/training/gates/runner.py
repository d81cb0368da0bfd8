"""Run the gates of a request in a fresh process, so that they judge the files and never the process
that trained them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tunery.plugins.runtime.memory import release_memory
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.gates.request import GateRequest
from tunery.plugins.training.gates.verdict import GateResult

__all__ = ["run_gates"]

PROCESS_FAILED = "gate_process_failed"
TIMEOUT_SECONDS = 3600.0
"""What all gates together may take: bases of many gigabytes on a CPU need long."""
STDERR_TAIL = 2000
"""Characters that are kept of a failed process's stderr."""


def run_gates(request: GateRequest, *, folder: Path, seconds: float = TIMEOUT_SECONDS) -> list[GateResult]:
    """Run the request's gates in a fresh process, with its files in `folder`; return a result for
    each gate that was reached.

    When the process dies or takes longer than `seconds`, the last result is for the gate that it was running, with the
    code `gate_process_failed` and the end of the process's stderr.
    """
    release_memory()
    files = JobFolder(folder)
    files.gates_request.write_bytes(msgspec.json.encode(request))
    files.gates_results.write_bytes(b"")
    failure = _spawn(files, seconds)
    results = [msgspec.json.decode(line, type=GateResult) for line in _whole_lines(files.gates_results)]
    if failure:
        last = files.gates_stderr.read_text(encoding="utf-8", errors="replace").strip()[-STDERR_TAIL:]
        at = request.gates[min(len(results), len(request.gates) - 1)]
        message = f"the gates' process {failure}; its last output: {last or 'none'}"
        results.append(GateResult(name=at.name, code=PROCESS_FAILED, passed=False, message=message))
    return results


def _spawn(files: JobFolder, seconds: float) -> str:
    """Run the process to its end; return how it failed, or an empty string."""
    command = [
        sys.executable,
        "-m",
        "tunery.plugins.training.gates.process",
        str(files.gates_request),
        str(files.gates_results),
    ]
    with (
        files.gates_stderr.open("wb") as stderr,
        _killed_at_the_end(subprocess.Popen(command, stdout=stderr, stderr=stderr, env=_environment())) as process,
    ):
        try:
            # With a timeout, wait polls, so that an interruption is noticed at once.
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"did not end within {seconds:g} s and was stopped"
    if code == 0:
        return ""
    return f"was killed by signal {-code}" if code < 0 else f"ended with {code}"


def _environment() -> dict[str, str]:
    """The environment of this process, with the Hugging Face Hub offline."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def _killed_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Kill the process when the block ends, in whatever way."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _whole_lines(path: Path) -> list[bytes]:
    """Lines that were written whole."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
