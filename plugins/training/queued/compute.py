"""Records the seconds that a job computes as usage of its tenant, while it runs, so that a kill loses few of them."""

from __future__ import annotations

import logging
import time

from tunery.registry.errors import TuneryError
from tunery.registry.jobs.queue import Claim
from tunery.registry.registry import Registry
from tunery.registry.usage.records import TRAINING, UsageRecord

__all__ = ["ComputeMeter"]

log = logging.getLogger("tunery.jobs")

RECORD_SECONDS = 15.0
"""Seconds between records, and so the most that a kill loses."""


class ComputeMeter:
    """The time of one process of a job, from now on. Its methods are for one thread."""

    def __init__(self, registry: Registry, claim: Claim) -> None:
        self._registry, self._claim = registry, claim
        self._since = time.monotonic()

    def tick(self) -> None:
        """Record what has passed, now and then."""
        if time.monotonic() - self._since > RECORD_SECONDS:
            self.record()

    def record(self) -> None:
        """Record what has passed since the last time; what cannot be recorded now is recorded later."""
        now = time.monotonic()
        try:
            job = self._registry.job(self._claim.job)
            used = UsageRecord(
                at=time.time(),
                tenant=job.tenant,
                key=(job.request.key if job.request else None) or "",
                model=job.adapter,
                endpoint=TRAINING,
                milliseconds=round(1000 * (now - self._since)),
                request_id=job.id,
            )
            self._registry.usage.add([used])
        except TuneryError as error:
            log.warning("what %s computes could not be recorded: %s", self._claim.job, error)
        else:
            self._since = now
