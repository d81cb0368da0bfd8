"""Pauses the jobs of a tenant or key whose compute seconds of the month are used up; they go on from their checkpoints
when somebody resumes them, which the limit has to allow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from tunery.gateway.tenancy.limits.book import LimitBook
from tunery.gateway.tenancy.limits.training import check_compute
from tunery.gateway.tenancy.principal import Principal
from tunery.registry.audit.origin import SYSTEM, Origin, acting
from tunery.registry.errors import Conflict, LimitReached, TuneryError
from tunery.registry.registry import Registry

__all__ = ["ComputeGuard"]

log = logging.getLogger("tunery.gateway")

CHECK_SECONDS = 15.0
"""Seconds between looks, as often as jobs record what they have used."""


class ComputeGuard:
    """Looks at the running jobs of a registry now and then. `now` is Unix time in seconds; `on_refused` is called with
    the limit's name for each job that it pauses."""

    def __init__(
        self, registry: Registry, book: LimitBook, *, now: Callable[[], float], on_refused: Callable[[str], None]
    ) -> None:
        self._registry, self._book, self._now, self._on_refused = registry, book, now, on_refused
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="compute-guard")

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def check(self) -> None:
        """Ask the jobs to pause whose tenant or key may train no longer. It reads the registry: call it in a thread."""
        for job in self._registry.queue.running():
            if job.wanted is not None or job.request is None:
                continue
            by = Principal(tenant=job.tenant, key=job.request.key)
            try:
                check_compute(self._registry.usage, self._book, by, now=self._now())
            except LimitReached as reached:
                why = f"{reached.message}; the job pauses"
                with contextlib.suppress(Conflict), acting(Origin(actor=SYSTEM)):
                    self._registry.queue.request(job.id, "pause", why=why)
                    self._on_refused(reached.limit)

    async def _run(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await asyncio.to_thread(self.check)
                failing = False
            except TuneryError as error:
                if not failing:
                    log.warning("the compute seconds of jobs cannot be checked now: %s", error)
                failing = True
