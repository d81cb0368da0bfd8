"""Owns what is known against a version: why it could not be loaded, and until when that counts; refuses to load anything.

Files are content-addressed, so an ArtifactRefused stays true until somebody asks for another try. Whatever else went wrong (a
missing file, a full memory) may heal by itself and counts for a while only, twice as long each time.
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

FIRST, LONGEST = 1.0, 60.0
"""Seconds for which a failure that may heal counts: the first time, and at most."""

MOST = 1_000
"""Digests remembered; beyond it, the one that was asked about longest ago is forgotten."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    error: TuneryError
    delay: float
    until: float


class FailedLoads:
    """The last error of a digest's loading, while it counts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: OrderedDict[str, _Refusal] = OrderedDict()

    def find(self, digest: str) -> TuneryError | None:
        """The error that a load of `digest` would meet again, ready to be raised."""
        refusal = self._known.get(digest)
        if refusal is None or self._clock() >= refusal.until:
            return None
        self._known.move_to_end(digest)
        return refusal.error.with_traceback(None)  # else each raise of the one object would lengthen its traceback

    def add(self, source: AdapterSource, error: Exception) -> None:
        """Remember that loading ended with `error`, without its frames: they hold on to the tensors that were read.

        What nobody raised on purpose is logged, and told to callers as Unavailable without its text.
        """
        if not isinstance(error, TuneryError):
            log.error("loading %s failed", source.title, exc_info=error)
            error = Unavailable(
                f"loading {source.title} failed ({type(error).__name__}): see the engine's log, or try again later"
            )
        before = self._known.pop(source.digest, None)
        delay = FIRST if before is None else min(2 * before.delay, LONGEST)
        until = math.inf if isinstance(error, ArtifactRefused) else self._clock() + delay
        error.__cause__ = error.__context__ = None
        self._known[source.digest] = _Refusal(error.with_traceback(None), delay, until)
        if len(self._known) > MOST:
            self._known.popitem(last=False)

    def forget(self, digest: str) -> None:
        """Let the next load start with a clean slate."""
        self._known.pop(digest, None)
