"""Heartbeats, which distinguish a hung engine from a busy one: they carry the duration of the running step.

The engine process sends a heartbeat from a thread of its own; the gateway measures how long the engine has been silent.
Silence means that the process is stopped, starved, or holds the interpreter's lock for ever. Heartbeats without
progress mean that one forward pass does not end. A long prompt on a slow machine may look like that for a while, so a
step gets ten times as long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec

from tunery.gateway.engine.messages import Alive, Event

__all__ = ["EngineTimeouts", "Heartbeat", "SilenceMonitor"]

BEAT_EVERY, TICK_EVERY = 1.0, 0.5
"""Seconds between heartbeats, and between the monitor's ticks."""
STEP_ALLOWANCE = 10
"""How many seconds of one step count as one second of silence."""
LONGEST_TICK = 1.0
"""The most that one tick adds to the silence, in seconds."""


class EngineTimeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Timeouts in seconds.

    An engine that is silent for `unready` is not ready, and for `restart` it is killed and started again. A request
    that has not begun is held for up to `hold` while no engine can answer.
    """

    unready: float = 10.0
    restart: float = 60.0
    hold: float = 15.0


class Heartbeat:
    """The engine's side: call `begin` and `end` around every step; `start` sends an Alive every
    second from a thread."""

    def __init__(self, send: Callable[[Event], None]) -> None:
        self._send = send
        self._step_began: float | None = None

    def start(self) -> None:
        """Send heartbeats until the gateway is gone."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def begin(self) -> None:
        """A step begins."""
        self._step_began = time.monotonic()

    def end(self) -> None:
        """The step has ended."""
        self._step_began = None

    def _beat(self) -> None:
        try:
            while True:
                began = self._step_began
                self._send(Alive(0.0 if began is None else time.monotonic() - began))
                time.sleep(BEAT_EVERY)
        except OSError:
            return


class SilenceMonitor:
    """The gateway's side: how long an engine has shown no sign of life. Call `tick` every TICK_EVERY seconds.

    Time in which this process itself did not run (a busy event loop, a machine that slept) hardly counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ticked = clock()
        self._silent = self._step = 0.0

    @property
    def silence(self) -> float:
        """Seconds of silence, or of a step that does not end divided by STEP_ALLOWANCE, whichever is more."""
        return max(self._silent, self._step / STEP_ALLOWANCE)

    def record(self, event: Event) -> None:
        """An event came: any is a sign of life."""
        self._silent = 0.0
        self._step = event.step_seconds if isinstance(event, Alive) else 0.0

    def tick(self) -> None:
        """Add the time since the last tick to the silence."""
        now = self._clock()
        self._silent += min(now - self._ticked, LONGEST_TICK)
        self._ticked = now
