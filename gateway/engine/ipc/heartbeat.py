"""How a hung engine is told from a busy one. The engine's process sends a heartbeat from a thread of its own, with how long the
step that is running has been at it; the gateway measures how long it has been silent.

Silence means that the process is stopped, starved, or holds the interpreter's lock for ever. Heartbeats without progress mean that
one step does not end: a long prompt on a slow machine may look like that for a while, so a step gets ten times as long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec

from tunery.gateway.engine.messages import Alive, Event

__all__ = ["EngineLimits", "Heartbeat", "Pulse"]

BEAT_EVERY, TICK_EVERY = 1.0, 0.5
STEP_ALLOWANCE = 10
LONGEST_TICK = 1.0


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """In seconds: silence after which an engine counts as not ready, and after which it is killed and started again; and how long
    a request that has not begun is held while there is none."""

    unready: float = 10.0
    restart: float = 60.0
    hold: float = 15.0


class Heartbeat:
    """The engine's side: `begin` and `end` around every turn of the loop, `start` sends an Alive every second from a thread."""

    def __init__(self, send: Callable[[Event], None]) -> None:
        self._send = send
        self._began: float | None = None

    def start(self) -> None:
        """Beat until the gateway is gone."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def begin(self) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def end(self) -> None:
        """It has ended."""
        self._began = None

    def _beat(self) -> None:
        try:
            while True:
                began = self._began
                self._send(Alive(0.0 if began is None else time.monotonic() - began))
                time.sleep(BEAT_EVERY)
        except OSError:
            return


class Pulse:
    """The gateway's side: how long an engine has shown no sign of life. Call `tick` every TICK_EVERY seconds.

    Time in which this process itself did not run (a busy event loop, a machine that slept) hardly counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ticked = clock()
        self._silent = self._step = 0.0

    @property
    def silence(self) -> float:
        """Seconds, those of a step that does not end divided by STEP_ALLOWANCE."""
        return max(self._silent, self._step / STEP_ALLOWANCE)

    def take(self, event: Event) -> None:
        """Any event is a sign of life."""
        self._silent = 0.0
        self._step = event.step_seconds if isinstance(event, Alive) else 0.0

    def tick(self) -> None:
        """Time has passed."""
        now = self._clock()
        self._silent += min(now - self._ticked, LONGEST_TICK)
        self._ticked = now
