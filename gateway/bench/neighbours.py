"""Measure what others cost: a process that takes a core, clients that send huge prompts, and a training job.

Each ratio comes from runs taken in turn, so that what a shared machine does to one it mostly does to the other. Every
run is a process of its own. Bars are judged in report.py.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tunery.gateway.bench.job_beside import measure_job_beside
from tunery.gateway.bench.serving import COMMAND, percentile, post, server, stream
from tunery.gateway.bench.suite import Row
from tunery.registry import Base
from tunery.registry.errors import Unavailable

__all__ = ["busy_processes", "measure_neighbours"]

ROUNDS = 3
STEPS = 10
"""Optimizer steps of a training run."""
PROMPT_BYTES = 15 * 10**6


def measure_neighbours(base: Base, data: Path, *, busy: int, say: Callable[[str], None]) -> list[Row]:
    """Decoding and training beside `busy` processes over alone, gaps of streams beside huge prompts and beside a job
    over alone, and that job's speed.

    `data` are rows to train on.
    """
    commands = {
        "decode": ("bench", "serve", "--base", base.digest, "--json"),
        "training": ("bench", "train", "--base", base.digest, "--data", str(data), "--steps", str(STEPS), "--json"),
    }
    figures = {"decode": "decode_tok_s", "training": "useful_tok_s"}
    rows = []
    for name, command in commands.items():
        alone, beside = [], []
        for _ in range(ROUNDS):
            alone.append(_figure(command, figures[name]))
            with busy_processes(busy):
                beside.append(_figure(command, figures[name]))
            say(f"{name}: {alone[-1]:.0f} tok/s alone, {beside[-1]:.0f} beside {busy} busy")
        rows.append(_over(f"{name}_beside_busy", f"{name} beside {busy} busy process, over alone", beside, alone))
    say("gaps of a stream beside prompts of 15 MB")
    rows.extend(_gaps(base.name))
    rows.extend(measure_job_beside(base.path, data, say))
    return rows


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that each take a core for as long as this lasts."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _figure(command: Sequence[str], name: str) -> float:
    """One figure of the JSON object that a command of ours prints."""
    done = subprocess.run([*COMMAND, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(
            f"tunery {' '.join(command[:2])} ended with exit code {done.returncode}: {done.stderr[-800:]}"
        )
    return float(json.loads(done.stdout)[name])


def _over(name: str, title: str, above: Sequence[float], below: Sequence[float]) -> Row:
    ratio = statistics.median(above) / statistics.median(below)
    return Row(
        name=name, title=title, value=round(ratio, 3), unit="×", detail={"with": list(above), "without": list(below)}
    )


def _gaps(base: str) -> Iterator[Row]:
    """The 99th percentile between a stream's tokens while another client sends prompts of 15 MB,
    over nobody sending any."""
    pauses = {"gap_beside_huge_prompts": 1.0, "gap_beside_endless_huge_prompts": 0.0}
    gaps: dict[str, list[list[float]]] = {name: [] for name in ("alone", *pauses)}
    answered = dict.fromkeys(pauses, 0)
    with server(base) as port:
        stream(port, base)
        for _ in range(ROUNDS):
            gaps["alone"].append(stream(port, base))
            for name, pause in pauses.items():
                with _huge_prompts(port, base, pause=pause) as statuses:
                    gaps[name].append(stream(port, base))
                answered[name] += len(statuses)
    for name, pause in pauses.items():
        title = f"99th percentile between tokens beside a 15 MB prompt {'a second' if pause else 'after the other'}, over alone"
        row = _over(name, title, *([percentile(run) for run in gaps[which]] for which in (name, "alone")))
        # One long stall hides behind a percentile.
        more = {"longest_with": max(map(max, gaps[name])), "longest_without": max(map(max, gaps["alone"]))}
        yield msgspec.structs.replace(row, detail=row.detail | more | {"prompts": answered[name]})


@contextmanager
def _huge_prompts(port: int, base: str, *, pause: float) -> Iterator[list[int]]:
    """Prompts of 15 MB from another thread, with a pause in seconds before each; the statuses that answered them."""
    over, statuses = threading.Event(), list[int]()
    # Encoded once: that work would hold up the thread that reads the stream.
    body = json.dumps({"model": base, "prompt": "word " * (PROMPT_BYTES // 5), "max_tokens": 1}).encode()

    def send() -> None:
        while not over.wait(pause):
            # A server that refuses by the length of the body may close before all of it is sent.
            with contextlib.suppress(ConnectionError), contextlib.closing(post(port, body)) as connection:
                statuses.append(connection.getresponse().status)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield statuses
    finally:
        over.set()
        thread.join()
