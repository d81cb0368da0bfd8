"""A Residency at work without weights: files of any size, a device, a clock, and loads that run
when the test says so."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunery.gateway.engine.adapters.residency import Residency
from tunery.gateway.engine.composition import AdapterSource

SIZE = 100


@dataclass(eq=False)
class Weights:
    """Weights of a size, on the host or on the device; counts how often the size was read."""

    source: AdapterSource
    size: int
    size_reads: int = 0
    plain: bool = True

    @property
    def bytes(self) -> int:
        self.size_reads += 1
        return self.size


class ManualExecutor(Executor):
    """Runs a submitted task when `run` is called."""

    def __init__(self) -> None:
        self.tasks: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.tasks.append((future, fn, args))
        return future

    def run(self) -> None:
        """Run the oldest task."""
        future, fn, args = self.tasks.popleft()
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)

    def digests(self) -> list[str]:
        """The digests of the loads that have not run."""
        return [args[0].digest for _, _, args in self.tasks]


class ResidencyHarness:
    """Drives a Residency. All dicts are by adapter number.

    `sizes` are the true sizes (SIZE unless set), `disk` those of the files (the true size unless set, None: no file).
    Reading raises what is in `broken`, placing what is in `unplaceable`; placing makes an adapter `grown` bytes larger.
    """

    def __init__(self, folder: Path, budget: int, *, ram: int = 0) -> None:
        self.folder = folder
        self.budget = budget
        self.now = 0.0
        self.sizes: dict[int, int] = {}
        self.disk: dict[int, int | None] = {}
        self.broken: dict[int, Exception] = {}
        self.unplaceable: dict[int, Exception] = {}
        self.grown: dict[int, int] = {}
        self.reads: list[int] = []
        self.hosts: weakref.WeakSet[Weights] = weakref.WeakSet()
        self.device: weakref.WeakSet[Weights] = weakref.WeakSet()
        self.fullest = 0
        self.executor = ManualExecutor()
        self.residency: Residency[Weights] = Residency(
            budget, self.read, place=self.place, ram_budget=ram, clock=lambda: self.now, executor=self.executor
        )

    def source(self, number: int) -> AdapterSource:
        size = self.disk.get(number, self.sizes.get(number, SIZE))
        path = self.folder / f"{size}.safetensors"
        if size is not None and not path.exists():
            with path.open("wb") as file:
                file.truncate(size)
        return AdapterSource(f"d{number}", f"acme/a{number}", 1, {"adapter_model.safetensors": str(path)})

    def read(self, source: AdapterSource) -> Weights:
        number = int(source.digest[1:])
        self.reads.append(number)
        if number in self.broken:
            raise self.broken[number]
        host = Weights(source, self.sizes.get(number, SIZE))
        self.hosts.add(host)
        return host

    def place(self, host: Weights) -> Weights:
        number = int(host.source.digest[1:])
        if number in self.unplaceable:
            raise self.unplaceable[number]
        placed = Weights(host.source, host.size + self.grown.get(number, 0))
        self.device.add(placed)
        self.fullest = max(self.fullest, sum(one.size for one in self.device))
        return placed

    def hold(self, number: int) -> Weights | None:
        return self.residency.hold(self.source(number))

    def want(self, number: int) -> None:
        self.residency.want(self.source(number))

    def land(self) -> None:
        """Run all loads and take them in."""
        while self.residency.busy:
            self.executor.run()
            assert self.residency.poll()

    def load(self, *numbers: int) -> None:
        """Make resident and idle."""
        for number in numbers:
            assert self.hold(number) is None
            self.land()
            assert self.residency.is_resident(f"d{number}")

    def take(self, *numbers: int) -> None:
        """Make resident and held."""
        for number in numbers:
            if self.hold(number) is None:
                self.land()
                assert self.hold(number) is not None

    @property
    def resident(self) -> list[int]:
        return [int(one.digest[1:]) for one in self.residency.resident()]


MakeWorld = Callable[..., ResidencyHarness]
