"""What the gateway processes in front of one engine have in common: how many requests are in flight, and the metrics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from tunery.gateway.api.health import refresh_metrics
from tunery.gateway.api.http.places import SharedPlaces
from tunery.gateway.api.state import Gateway
from tunery.gateway.workers.messages import WorkerSpec
from tunery.gateway.workers.snapshot import Snapshot, take_snapshot
from tunery.registry.errors import Unavailable

__all__ = ["WorkerPeers", "metrics_path", "read_snapshots", "snapshot_path"]

ANSWER_SECONDS = 5.0
"""Seconds that one process has to say what its metrics are."""
MAX_BYTES = 64 * 2**20


class WorkerPeers:
    """The peers of one process; see gateway_process.Peers."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self.is_first = spec.worker == 0
        self.places = SharedPlaces(Path(spec.folder) / "places", worker=spec.worker, workers=spec.workers)
        self.places.clear()
        self._gateway: Gateway | None = None

    async def exposition(self) -> bytes:
        """See Peers.exposition."""
        try:
            async with asyncio.timeout(2 * ANSWER_SECONDS):
                return await _read(metrics_path(self._spec.folder))
        except (OSError, TimeoutError) as error:
            raise Unavailable("the metrics of the server's processes cannot be read now; try again") from error

    @contextlib.asynccontextmanager
    async def publishing(self, gateway: Gateway) -> AsyncIterator[None]:
        """See Peers.publishing."""
        self._gateway = gateway
        path = snapshot_path(self._spec.folder, self._spec.worker)
        path.unlink(missing_ok=True)  # of a process that was killed
        server = await asyncio.start_unix_server(self._answer, path)
        try:
            yield
        finally:
            server.close()

    async def snapshot(self) -> Snapshot:
        """The metrics of this process."""
        if self._gateway is None:
            return ()
        metrics = self._gateway.metrics
        return await asyncio.get_running_loop().run_in_executor(metrics.thread, take_snapshot, metrics.registry)

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            if self._gateway is not None:
                await refresh_metrics(self._gateway)
            writer.write(msgspec.msgpack.encode(await self.snapshot()))
            await writer.drain()


def snapshot_path(folder: str, worker: int) -> Path:
    """Where a process says what its metrics are."""
    return Path(folder) / f"worker-{worker}.sock"


def metrics_path(folder: str) -> Path:
    """Where the metrics of all processes are."""
    return Path(folder) / "metrics.sock"


async def read_snapshots(folder: str, workers: Sequence[int]) -> list[Snapshot | None]:
    """The metrics of these processes; None of one that does not answer."""
    return await asyncio.gather(*(_read_snapshot(snapshot_path(folder, worker)) for worker in workers))


async def _read_snapshot(path: Path) -> Snapshot | None:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return msgspec.msgpack.decode(await _read(path), type=Snapshot)
    except (OSError, TimeoutError, msgspec.DecodeError):
        return None


async def _read(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path, limit=MAX_BYTES)
    with contextlib.closing(writer):
        return await reader.read()
