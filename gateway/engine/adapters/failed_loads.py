"""Failed loads: a negative cache of why a version could not be loaded, and until when that counts.

Files are content-addressed, so an ArtifactRefused stays true until an operator asks for another try. Other errors (a
missing file, full memory) may go away by themselves and count for a limited time, twice as long after each failure.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from tunery.gateway.engine.composition import AdapterSource
from tunery.registry.errors import ArtifactRefused, TuneryError, Unavailable

__all__ = ["FailedLoads"]

log = logging.getLogger("tunery.engine")

FIRST_SECONDS, MAX_SECONDS = 1.0, 60.0
"""How long a failure that may go away counts: the first time, and at most."""

MAX_FAILURES = 1_000
"""Digests remembered; beyond it, the least recently used one is forgotten."""


@dataclass(frozen=True, slots=True)
class _Failure:
    error: TuneryError
    delay: float
    until: float


class FailedLoads:
    """By digest, the error of the latest load, while it counts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, _Failure] = OrderedDict()

    def find(self, digest: str) -> TuneryError | None:
        """The error that loading `digest` again would end with, to be raised; None when it may be tried."""
        failure = self._failures.get(digest)
        if failure is None or self._clock() >= failure.until:
            return None
        self._failures.move_to_end(digest)
        return failure.error.with_traceback(None)  # otherwise each raise of the same object lengthens its traceback

    def add(self, source: AdapterSource, error: Exception) -> None:
        """Remember that loading `source` ended with `error`, without its frames, which keep the
        tensors alive that were read.

        An error that is not a TuneryError is logged, and replaced by Unavailable without its text.
        """
        if not isinstance(error, TuneryError):
            log.error("loading %s failed", source.title, exc_info=error)
            error = Unavailable(
                f"loading {source.title} failed ({type(error).__name__}): see the engine's log, or try again later"
            )
        before = self._failures.pop(source.digest, None)
        delay = FIRST_SECONDS if before is None else min(2 * before.delay, MAX_SECONDS)
        until = math.inf if isinstance(error, ArtifactRefused) else self._clock() + delay
        error.__cause__ = error.__context__ = None
        self._failures[source.digest] = _Failure(error.with_traceback(None), delay, until)
        if len(self._failures) > MAX_FAILURES:
            self._failures.popitem(last=False)

    def forget(self, digest: str) -> None:
        """Forget the failures of `digest`."""
        self._failures.pop(digest, None)
