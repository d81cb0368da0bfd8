"""Owns what stands between trained files and a version: gates, asked one after another in a fresh process.

A gate is a function `(case: GateCase) -> Verdict`, named by a `GateInfo`; it looks at the produced files and the base, never at the
process that trained. Refuses to publish what fails a gate, unless that was asked for, which is recorded with the version.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from tunery.plugins.hookspecs import GateInfo
from tunery.plugins.quantization import Quant
from tunery.plugins.runtime.memory import release_memory
from tunery.plugins.training.examples.batches import Example
from tunery.registry.errors import TrainingFailed

__all__ = [
    "Gate",
    "GateCase",
    "GateRequest",
    "GateResult",
    "GatesFailed",
    "Precision",
    "Verdict",
    "check_gates",
    "failed",
    "named",
    "passed",
    "run_gates",
    "skipped",
]

PROCESS_FAILED = "gate_process_failed"
SECONDS = 3600.0
"""What all gates together may take: hours are for bases of many gigabytes on a CPU."""
TAIL = 2000
"""Characters of a dead process's last words that are kept."""

T = TypeVar("T")


class Precision(msgspec.Struct, frozen=True):
    """How a base is held and computed with."""

    quant: Quant
    dtype: Literal["float32", "bfloat16"]


class Gate(msgspec.Struct, frozen=True):
    """A gate as its process needs it; see GateInfo."""

    name: str
    code: str
    entrypoint: str


class GateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be judged: the files in `folder`, made for `adapter` on a base.

    `training` is how the trainer held the base, `serving` how `tunery serve` will; `packed` is where serving keeps its packed bases.
    `held_out` and `trained` are some rows of either kind, `reference` the file of the trainer's own log-probabilities (see
    `reference.py`; it may be missing). `metrics` and `parameters` are the run's; `supervised` says that it minimised the
    loss of the trained tokens, and not something else.
    """

    gates: list[Gate]
    adapter: str
    folder: str
    base_name: str
    base_digest: str
    base_folder: str
    packed: str = ""
    training: Precision
    serving: Precision
    device: str = "cpu"
    held_out: list[Example] = []
    trained: list[Example] = []
    reference: str = ""
    metrics: dict[str, float] = {}
    parameters: dict[str, Any] = {}
    supervised: bool = True


class Verdict(msgspec.Struct, frozen=True):
    """What a gate found: in words for people, in `figures` for machines."""

    state: Literal["passed", "failed", "skipped"]
    message: str
    figures: dict[str, float] = {}


def passed(message: str, **figures: float) -> Verdict:
    """It holds."""
    return Verdict("passed", message, figures)


def failed(message: str, **figures: float) -> Verdict:
    """It does not hold; `message` says what to do about it."""
    return Verdict("failed", message, figures)


def skipped(reason: str, **figures: float) -> Verdict:
    """It cannot be told here, and that is recorded."""
    return Verdict("skipped", reason, figures)


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """A gate's verdict as it is kept; `code` is what a failed one makes the job fail with."""

    name: str
    code: str
    passed: bool
    skipped: bool = False
    message: str
    figures: dict[str, float] = {}

    @property
    def failed(self) -> bool:
        """Whether it keeps the files from being published."""
        return not (self.passed or self.skipped)


class GateCase:
    """The request, and what one gate made that another can use: an engine, say, with the base in it."""

    def __init__(self, request: GateRequest) -> None:
        self.request = request
        self._made: dict[object, Any] = {}

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What `make` gives, made for the first who asks for `key`."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found


class GatesFailed(TrainingFailed):
    """The produced files must not be served; `code` is the first failed gate's, `results` are all."""

    def __init__(self, results: Sequence[GateResult], folder: Path) -> None:
        wrong = [result for result in results if result.failed]
        lines = "\n".join(f"  {result.name} ({result.code}): {result.message}" for result in wrong)
        super().__init__(
            f"{len(wrong)} of {len(results)} gates failed, nothing was published:\n{lines}\nThe files are in {folder}. Publishing "
            f"them all the same is recorded with the version: tunery train --resume {folder.parent.name} --force",
            code=wrong[0].code,
        )
        self.results = tuple(results)


def check_gates(results: Sequence[GateResult], folder: Path) -> None:
    """Raise GatesFailed, naming every gate that did not hold for the files in `folder`."""
    if any(result.failed for result in results):
        raise GatesFailed(results, folder)


def named(gates: Sequence[GateInfo]) -> list[Gate]:
    """Registered gates as a request names them."""
    return [Gate(gate.name, gate.code, gate.entrypoint) for gate in gates]


def run_gates(request: GateRequest, *, folder: Path, seconds: float = SECONDS) -> list[GateResult]:
    """Ask the request's gates in a fresh process that works in `folder`; a result for each that was reached.

    When the process dies or takes longer than `seconds`, the last result is of the gate it was at, with the code
    `gate_process_failed` and what the process last said.
    """
    release_memory()
    asked, answers, said = (folder / f"gates.{kind}" for kind in ("request.json", "results.jsonl", "stderr"))
    asked.write_bytes(msgspec.json.encode(request))
    answers.write_bytes(b"")
    how = _spawn(asked, answers, said, seconds)
    results = [msgspec.json.decode(line, type=GateResult) for line in _whole_lines(answers)]
    if how:
        last = said.read_text(encoding="utf-8", errors="replace").strip()[-TAIL:]
        at = request.gates[min(len(results), len(request.gates) - 1)]
        message = f"the process that asks the gates {how}; it last said: {last or 'nothing'}"
        results.append(GateResult(name=at.name, code=PROCESS_FAILED, passed=False, message=message))
    return results


def _spawn(asked: Path, answers: Path, said: Path, seconds: float) -> str:
    """Run the process to its end; how it ended, or nothing when it ended well."""
    command = [sys.executable, "-m", "tunery.plugins.training.gates.process", str(asked), str(answers)]
    with (
        said.open("wb") as stderr,
        _ended(subprocess.Popen(command, stdout=stderr, stderr=stderr, env=_environment())) as process,
    ):
        try:
            # With a time limit it looks now and then, so that an interruption is noticed at once.
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"did not end within {seconds:g} s and was stopped"
    if code == 0:
        return ""
    return f"was killed by signal {-code}" if code < 0 else f"ended with {code}"


def _environment() -> dict[str, str]:
    """This process's, and no look at the network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """However the block ends, the process has ended too."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _whole_lines(path: Path) -> list[bytes]:
    """Lines that were written to their end."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
