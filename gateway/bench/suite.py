"""The rows of the serving suite, one method each; report.py judges them.

Everything runs on the real base with random rank-16 adapters on all linear layers, greedily, in this process, except
the start of the server and the memory of an engine, which are measured on processes of their own.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from tunery.gateway.bench.driver import Driver
from tunery.gateway.bench.engines import BATCH, Engines
from tunery.gateway.bench.settings import Workload
from tunery.gateway.bench.workload import figures, middle, prompts
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.config import EngineConfig

__all__ = ["Row", "Suite", "run_suite"]

NEW = 48
REGISTERED, RESIDENT = 1000, 64
ZIPF_REQUESTS = 512
"""Enough for the hit rate to settle: a resident adapter is asked for eight times on average."""
COLD = 24
"""Adapters that are loaded while others decode, and whose first tokens are timed."""
RUNS = 3
PAIRS = 5
"""Measurements of the mixed batch and the bare base in turn: what a shared machine does to one it
mostly does to both."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure: `value` in `unit`.

    `detail` holds what it was computed from.
    """

    name: str
    title: str
    value: float
    unit: str
    detail: dict[str, Any] = {}


class Suite:
    """The rows, on one base. `say` gets a line for each measurement that starts."""

    def __init__(self, config: EngineConfig, scratch: Path, say: Callable[[str], None]) -> None:
        self._config = config
        self._scratch = scratch
        self._engines = Engines(config, scratch)
        self._say = say

    def run(self) -> Iterator[Row]:
        """Every row in turn."""
        yield from self._speeds()
        yield from self._sweep()
        yield self._registered()
        yield self._zipf()
        yield self._cold_first_token()
        yield self._gaps()
        yield self._memory()
        yield self._start()

    # -- throughput ----------------------------------------------------------------------------------------------------

    def _speeds(self) -> Iterator[Row]:
        """Decode and prefill of full batches, and one request alone."""
        for quant in ("nf4", "int8"):
            with self._engines.start(quant=quant) as driver:
                sources = self._engines.adapters(driver, BATCH)
                driver.load(sources)
                pairs = [
                    (figures(driver, sources, Workload(adapters=BATCH)), figures(driver, [], Workload(adapters=0)))
                    for _ in range(PAIRS)
                ]
                mixed, bare = (middle([pair[side] for pair in pairs]) for side in range(2))
                alone = figures(driver, [], Workload(adapters=0, batch=1), runs=RUNS)
            share = statistics.median(one.decode_tok_s / other.decode_tok_s for one, other in pairs)
            for name, one in (("mixed", mixed), ("base", bare), ("alone", alone)):
                detail = msgspec.structs.asdict(one)
                yield Row(
                    name=f"{name}_decode_{quant}",
                    title=f"decode, {TITLES[name]}, {quant}",
                    value=one.decode_tok_s,
                    unit="tok/s",
                    detail=detail,
                )
            yield Row(
                name=f"mixed_prefill_{quant}",
                title=f"prefill, {TITLES['mixed']}, {quant}",
                value=mixed.prefill_tok_s,
                unit="tok/s",
            )
            yield Row(
                name=f"mixed_over_base_{quant}", title=f"decode, 32 adapters over the bare base, {quant}",
                value=round(share, 3), unit="×",
            )  # fmt: skip

    def _sweep(self) -> Iterator[Row]:
        """A full batch over 1, 2, 4 … adapters."""
        with self._engines.start() as driver:
            sources = self._engines.adapters(driver, BATCH)
            driver.load(sources)
            for count in (0, 1, 2, 4, 8, 16, BATCH):
                one = figures(driver, sources[:count], Workload(adapters=count), runs=RUNS)
                yield Row(
                    name=f"sweep_{count}",
                    title=f"decode, batch of 32 over {count} adapters",
                    value=one.decode_tok_s,
                    unit="tok/s",
                    detail=msgspec.structs.asdict(one),
                )

    def _registered(self) -> Row:
        """What base-only traffic pays for a thousand adapters that it does not use."""
        off: list[float] = []
        on: list[float] = []
        with (
            self._engines.start() as without,
            self._engines.start(adapter_budget=self._engines.budget(RESIDENT)) as with_them,
        ):
            versions = self._engines.identities(with_them, REGISTERED)
            with_them.load(versions)
            for _ in range(RUNS + 2):
                off.append(figures(without, [], Workload(adapters=0)).decode_tok_s)
                on.append(figures(with_them, [], Workload(adapters=0)).decode_tok_s)
        value = statistics.median(b / a for a, b in zip(off, on, strict=True))
        return Row(
            name="registered",
            title="base-only decode with 1,000 adapters over without any",
            value=round(value, 3),
            unit="×",
            detail={"off": off, "on": on},
        )

    def _zipf(self) -> Row:
        """A thousand adapters by Zipf's law with room for 64, over all of them resident."""
        ranks = [1 / rank for rank in range(1, REGISTERED + 1)]
        noise = random.Random(0)  # noqa: S311 - a workload
        drawn = noise.choices(range(REGISTERED), ranks, k=ZIPF_REQUESTS)
        speeds: dict[str, float] = {}
        for resident in (RESIDENT, REGISTERED):
            self._say(f"Zipf over {REGISTERED} adapters, {resident} resident")
            with self._engines.start(adapter_budget=self._engines.budget(resident)) as driver:
                versions = self._engines.identities(driver, REGISTERED)
                driver.load(list(reversed(versions[:resident])))
                started = driver.now()
                self._closed_loop(driver, [versions[index] for index in drawn])
                speeds[f"tok_s_{resident}"] = ZIPF_REQUESTS * NEW / (driver.now() - started)
                loads = sum(driver.core.residency.loads.values()) - resident
            speeds[f"loads_{resident}"] = loads
        return Row(
            name="zipf", title="1,000 adapters by Zipf 1.0, room for 64, over all resident",
            value=round(speeds[f"tok_s_{RESIDENT}"] / speeds[f"tok_s_{REGISTERED}"], 3), unit="×", detail={name: round(value, 1) for name, value in speeds.items()},
        )  # fmt: skip

    def _closed_loop(self, driver: Driver, sources: list[AdapterSource]) -> None:
        """Keep BATCH requests running until all are answered."""
        pool = prompts(driver, Workload(adapters=0, batch=64))
        rest = iter(enumerate(sources))
        for index, source in itertools.islice(rest, BATCH):
            driver.submit(str(index), pool[index % 64], NEW, source)
        answered = 0

        def refill() -> None:
            nonlocal answered
            for index, source in itertools.islice(rest, len(driver.done) - answered):
                driver.submit(str(index), pool[index % 64], NEW, source)
            answered = len(driver.done)

        driver.finish(refill)

    # -- adapters that come and go -------------------------------------------------------------------------------------

    def _cold_first_token(self) -> Row:
        """A request whose adapter is on disk against one whose adapter is in memory, on an idle engine."""
        first: dict[str, list[float]] = {"cold": [], "warm": []}
        with self._engines.start() as driver:
            sources = self._engines.adapters(driver, COLD)
            driver.load(sources)
            pool = prompts(driver, Workload(adapters=0, batch=2 * COLD, seed=1))
            for index, source in enumerate(sources):
                for offset, kind in enumerate(("warm", "cold")):
                    if kind == "cold":
                        driver.unload(source)
                    driver.submit(kind, pool[2 * index + offset], 2, source)
                    times = driver.finish()[kind]
                    first[kind].append(1000 * (times.first - times.queued))
        cold, warm = statistics.median(first["cold"]), statistics.median(first["warm"])
        return Row(
            name="cold_first_token",
            title="first token of a cold adapter over a warm one, median",
            value=round(cold - warm, 1),
            unit="ms",
            detail={"cold_ms": round(cold, 1), "warm_ms": round(warm, 1)},
        )

    def _gaps(self) -> Row:
        """The others' 99th percentile between tokens while requests for cold adapters come in, over none coming."""
        percentiles = {}
        with self._engines.start() as driver:
            sources = self._engines.adapters(driver, BATCH - 1 + COLD)
            others, cold = sources[: BATCH - 1], sources[BATCH - 1 :]
            driver.load(others)
            pool = prompts(driver, Workload(adapters=0, batch=2 * BATCH + COLD, seed=2))
            for kind in ("steady", "loading"):
                for index, source in enumerate(others):
                    driver.submit(f"other-{index}", pool[index], 6 * NEW, source)
                coming = iter(enumerate(cold if kind == "loading" else []))
                steps = itertools.count(1)

                def arrive(coming: Iterator[tuple[int, AdapterSource]] = coming, steps: Iterator[int] = steps) -> None:
                    if next(steps) % 10 == 0 and (one := next(coming, None)) is not None:
                        driver.submit(f"cold-{one[0]}", pool[BATCH + one[0]], 2, one[1])

                times = driver.finish(arrive)
                gaps = sorted(gap for name, one in times.items() if name.startswith("other") for gap in one.gaps[2:])
                percentiles[kind] = 1000 * gaps[int(0.99 * len(gaps))]
        return Row(
            name="gap", title="99th percentile between the others' tokens while cold adapters come, over steady",
            value=round(percentiles["loading"] / percentiles["steady"], 3), unit="×", detail={f"{k}_ms": round(v, 1) for k, v in percentiles.items()},
        )  # fmt: skip

    # -- processes of their own ----------------------------------------------------------------------------------------

    def _memory(self) -> Row:
        """What an engine with 32 adapters takes, over its base's and adapters' own bytes."""
        self._say("memory")
        config = msgspec.json.encode(self._config).decode()
        done = subprocess.run(
            [sys.executable, "-m", "tunery.gateway.bench.memory", config, str(self._scratch)],
            check=True, capture_output=True, encoding="utf-8", errors="replace", env={**os.environ, "TQDM_DISABLE": "1"},
        )  # fmt: skip
        memory = json.loads(done.stdout)
        return Row(
            name="memory",
            title="memory of the NF4 base and 32 adapters over their own bytes",
            value=round(memory["grown"] / (memory["base"] + memory["adapters"]), 3),
            unit="×",
            detail=memory,
        )

    def _start(self) -> Row:
        """From the command to the line that says ready."""
        self._say("start of the server")
        seconds = []
        base = self._config.base_name
        command = [sys.executable, "-m", "tunery.gateway.cli", "serve", "--base", base, "--port", "0", "--no-auth"]
        for _ in range(RUNS):
            started = time.perf_counter()
            with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", errors="replace") as process:
                for line in process.stderr or ():
                    if line.startswith("ready"):
                        seconds.append(time.perf_counter() - started)
                        break
                process.terminate()
        return Row(
            name="start",
            title="`tunery serve` to ready, base cached",
            value=round(statistics.median(seconds), 2),
            unit="s",
            detail={"seconds": [round(s, 2) for s in seconds]},
        )


TITLES = {
    "mixed": "32 requests on 32 adapters",
    "base": "32 requests on the bare base",
    "alone": "1 request on the bare base",
}


def run_suite(config: EngineConfig, say: Callable[[str], None]) -> list[Row]:
    """All rows; minutes, and 25 GB of memory at most."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as scratch:
        for row in Suite(config, Path(scratch), say).run():
            say(f"{row.title}: {row.value} {row.unit}")
            rows.append(row)
    return rows
