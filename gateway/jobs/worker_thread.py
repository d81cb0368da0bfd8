"""The worker that runs inside `tunery serve`, and as `tunery worker`: a thread that claims jobs and watches over
their processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

from tunery.plugins.descriptors import load_entrypoint
from tunery.plugins.executors.worker import Worker
from tunery.plugins.manager import Plugins
from tunery.registry.configuration.settings import JobsSettings
from tunery.registry.home import Home
from tunery.registry.registry import Registry

__all__ = ["WorkerThread"]


class WorkerThread:
    """Runs a worker while the block runs, on a registry of its own; at the end its jobs go back to the queue."""

    def __init__(self, home: Home, settings: JobsSettings, plugins: Plugins, *, say: Callable[[str], None]) -> None:
        executor = load_entrypoint(plugins.executor(settings.executor).entrypoint)()
        self._registry = Registry.open(home)
        self._worker = Worker(self._registry, executor, settings, say=say)
        self._thread = threading.Thread(target=self._worker.run, name="worker")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.stop()
        self._thread.join()
        self._registry.close()
