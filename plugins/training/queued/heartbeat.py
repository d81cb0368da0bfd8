"""Renew a claim while its job runs, and hear what the job is asked to do."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tunery.plugins.training.queued.compute import ComputeMeter
from tunery.registry.errors import Conflict, TuneryError
from tunery.registry.jobs.job_queue import LEASE_SECONDS
from tunery.registry.jobs.queue import Claim
from tunery.registry.registry import Registry

__all__ = ["POLL_SECONDS", "heartbeat"]

log = logging.getLogger("tunery.jobs")

POLL_SECONDS = 0.5
"""Seconds between looks at what the job is asked to do."""
BEAT_SECONDS = LEASE_SECONDS / 6


@contextmanager
def heartbeat(
    registry: Registry, claim: Claim, *, on_wanted: Callable[[str], None], on_lost: Callable[[], None]
) -> Iterator[None]:
    """Renew `claim` while the block runs, and record the seconds that it takes as usage.

    `on_wanted` is called, in the heartbeat's thread, with what the job is asked to do, again and again until the block
    ends; `on_lost` when the claim is somebody else's or could not be renewed before it ran out.
    """
    ended, meter = threading.Event(), ComputeMeter(registry, claim)
    thread = threading.Thread(
        target=_run, args=(registry, claim, ended, meter, on_wanted, on_lost), name="heartbeat", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        meter.record()


def _run(
    registry: Registry,
    claim: Claim,
    ended: threading.Event,
    meter: ComputeMeter,
    on_wanted: Callable[[str], None],
    on_lost: Callable[[], None],
) -> None:
    renewed, changes = time.monotonic(), -1
    wanted: str | None = None
    while not ended.wait(POLL_SECONDS):
        meter.tick()
        try:
            now = time.monotonic()
            if now - renewed > BEAT_SECONDS:
                wanted, renewed = registry.queue.beat(claim), now
            elif (latest := registry.changes()) != changes:
                wanted, changes = registry.job(claim.job).wanted, latest
        except Conflict:
            if not ended.is_set():
                on_lost()
            return
        except TuneryError as error:
            log.warning("the claim of %s could not be renewed: %s", claim.job, error)
            if time.monotonic() - renewed > LEASE_SECONDS:
                on_lost()
                return
            continue
        if wanted is not None and not ended.is_set():
            on_wanted(wanted)
