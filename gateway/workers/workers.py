"""Starts the gateway processes in front of one engine, starts those again that end, and adds up their metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from tunery.gateway.engine.ipc.supervisor import SupervisedEngine
from tunery.gateway.sockets import reserve
from tunery.gateway.workers.messages import Ended, Failed, Ready, WorkerSpec, read_message
from tunery.gateway.workers.peers import metrics_path, read_snapshots
from tunery.gateway.workers.shared_names import shared_names
from tunery.gateway.workers.snapshot import Snapshot, exposition, lasting, merge
from tunery.registry import Base
from tunery.registry.configuration.settings import Settings
from tunery.registry.errors import TuneryError, Unavailable, error_of_kind
from tunery.registry.home import Home
from tunery.registry.keys.api_key import ApiKey

__all__ = ["Workers"]

log = logging.getLogger("tunery.gateway")

COMMAND = (sys.executable, "-m", "tunery.gateway.workers.worker")
FIRST_PAUSE, MAX_PAUSE = 0.1, 10.0
"""Seconds before a process that ended is started again: at first, and at most; doubled while it ends before it
answers."""
MAX_FAILED_STARTS = 5
"""Starts in a row after which a process that has never answered is given up."""
KILL_SECONDS = 120.0
"""Seconds beyond those of draining after which processes that have not ended are killed."""

Say = Callable[[str], None]


class Workers:
    """The processes of `settings.serve.workers`; they meet in `folder`, where the engine is too."""

    def __init__(self, settings: Settings, base: Base, *, home: Home, own_key: ApiKey | None, folder: Path) -> None:
        self._settings, self._folder, self._count = _together(settings), str(folder), settings.serve.workers
        self._base, self._home, self._own_key = base, str(home.root), own_key
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._ready: list[asyncio.Future[Ready]] = []
        self._latest: dict[int, Snapshot] = {}
        self._retired: Snapshot = ()
        self._stopping = asyncio.Event()

    async def run(self, engine: SupervisedEngine, *, say: Say) -> None:
        """Serve until SIGTERM or SIGINT, and let the processes drain; raise what makes them fail to start, and Unavailable
        where the engine never becomes ready."""
        signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        with _signals(signals), _reserved(self._settings):
            self._ready = [asyncio.get_running_loop().create_future() for _ in range(self._count)]
            metrics = await asyncio.start_unix_server(self._answer, metrics_path(self._folder))
            keeping = [
                asyncio.create_task(self._keep(worker), name=f"worker {worker}") for worker in range(self._count)
            ]
            announcing = asyncio.create_task(self._announce(engine, say))
            stopping = asyncio.create_task(signals.get())
            try:
                await _first_of(stopping, announcing, *keeping)
                if stopping.done():
                    await self._drain(stopping.result(), signals, keeping)
            finally:
                metrics.close()
                for task in (announcing, stopping, *keeping):
                    task.cancel()
                await asyncio.gather(announcing, stopping, *keeping, return_exceptions=True)

    async def _announce(self, engine: SupervisedEngine, say: Say) -> None:
        """Say once that all processes answer, and then wait for ever; raise what keeps the engine from that."""
        await engine.wait_ready()
        first, *_ = await asyncio.gather(*self._ready)
        *others, line = first.lines
        for other in others:
            say(other)
        say(f"{line}, from {self._count} processes")
        await asyncio.Event().wait()

    async def _keep(self, worker: int) -> None:
        """Run one process after another, with longer pauses while they end before they answer."""
        failed, pause = 0, FIRST_PAUSE
        while True:
            failure = await self._run_once(worker)
            if self._stopping.is_set():
                return
            answered = self._ready[worker].done()
            failed, pause = (
                (0, FIRST_PAUSE) if answered and failure is None else (failed + 1, min(2 * pause, MAX_PAUSE))
            )
            if not answered and (failure is not None or failed >= MAX_FAILED_STARTS):
                raise failure or Unavailable(
                    f"process {worker} of the server ended {failed} times before it answered; see its messages above",
                    code="worker_failed",
                )
            log.warning("process %d of the server ended; starting it again in %.1f s", worker, pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _run_once(self, worker: int) -> TuneryError | None:
        """Run one process from start to end; the error that it ended with, if it named one."""
        pipe = asyncio.subprocess.PIPE
        # Ctrl-C reaches this process alone, which tells the others.
        process = await asyncio.create_subprocess_exec(*COMMAND, stdin=pipe, stdout=pipe, start_new_session=True)
        self._processes[worker] = process
        failure: TuneryError | None = None
        try:
            assert process.stdin is not None  # noqa: S101 - they are pipes
            assert process.stdout is not None  # noqa: S101
            process.stdin.write(msgspec.msgpack.encode(self._spec(worker)))
            process.stdin.close()
            while (message := await read_message(process.stdout)) is not None:
                if isinstance(message, Failed):
                    failure = error_of_kind(message.kind, message.message, code=message.code)
                elif isinstance(message, Ended):
                    self._latest[worker] = message.snapshot
                elif not self._ready[worker].done():
                    self._ready[worker].set_result(message)
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._retire(worker)
        return failure

    def _spec(self, worker: int) -> WorkerSpec:
        return WorkerSpec(
            settings=self._settings,
            base=self._base,
            home=self._home,
            own_key=self._own_key,
            folder=self._folder,
            worker=worker,
            workers=self._count,
        )

    async def _drain(
        self, number: signal.Signals, signals: asyncio.Queue[signal.Signals], keeping: list[asyncio.Task[None]]
    ) -> None:
        """Pass signals on until all processes have ended; those that hang are killed by whoever stops `keeping`."""
        self._stopping.set()
        serving, loop = self._settings.serve, asyncio.get_running_loop()
        end = loop.time() + serving.drain_delay + serving.drain_seconds + KILL_SECONDS
        ended = asyncio.gather(*keeping, return_exceptions=True)
        while not ended.done() and (left := end - loop.time()) > 0:
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
            another = asyncio.create_task(signals.get())
            await asyncio.wait((ended, another), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            number = another.result() if another.done() else number
            another.cancel()
        if not ended.done():
            log.warning("processes of the server have not ended in time and are killed: %d", len(self._processes))

    # -- metrics -------------------------------------------------------------------------------------------------------

    def _retire(self, worker: int) -> None:
        """Keep the counts of a process that has ended, so that the sum of all never falls."""
        self._processes.pop(worker, None)
        last = lasting(self._latest.pop(worker, ()), shared=shared_names())
        self._retired = merge([self._retired, last])

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            writer.write(await self._exposition())
            await writer.drain()

    async def _exposition(self) -> bytes:
        workers = sorted(self._processes)
        for worker, snapshot in zip(workers, await read_snapshots(self._folder, workers), strict=True):
            # Of one that has ended meanwhile the last ones are kept already.
            if snapshot is not None and worker in self._processes:
                self._latest[worker] = snapshot
        snapshots = [self._latest[worker] for worker in sorted(self._latest)]
        return await asyncio.to_thread(_exposition, [*snapshots, self._retired])


def _exposition(snapshots: list[Snapshot]) -> bytes:
    return exposition(merge(snapshots, shared=shared_names()))


def _together(settings: Settings) -> Settings:
    """The settings of processes that count the limits of tenants together."""
    limits = settings.limits
    if limits.store == "memory":
        limits = msgspec.structs.replace(limits, store="database")
    return msgspec.structs.replace(settings, limits=limits)


@contextlib.contextmanager
def _reserved(settings: Settings) -> Iterator[None]:
    """Keep the ports from others while no process may be listening on them."""
    serving = settings.serve
    with contextlib.ExitStack() as sockets:
        sockets.enter_context(reserve(serving.host, serving.port))
        if serving.admin_port:
            sockets.enter_context(reserve(serving.admin_host or serving.host, serving.admin_port))
        yield


@contextlib.contextmanager
def _signals(queue: asyncio.Queue[signal.Signals]) -> Iterator[None]:
    """Put each SIGTERM and SIGINT into a queue."""
    loop, numbers = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, queue.put_nowait, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _first_of(stopping: asyncio.Task[signal.Signals], *tasks: asyncio.Task[None]) -> None:
    """Wait for a signal; raise what a task raises first."""
    await asyncio.wait((stopping, *tasks), return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done() and not stopping.done():
            task.result()
