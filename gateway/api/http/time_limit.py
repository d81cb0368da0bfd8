"""Limits how long single waits of a request may take, with one timer for all of them.

`asyncio.timeout` makes, arms and disarms a timer for each wait, which took a tenth of the gateway's work for every token
that it streamed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

__all__ = ["TimeLimit"]

T = TypeVar("T")


class TimeLimit:
    """The waits of one request, of which there is one at a time. Close it in the end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: asyncio.Task[Any] | None = None
        self._until = 0.0
        self._expired = False

    async def wait(self, awaitable: Awaitable[T], *, until: float) -> T:
        """What `awaitable` gives; raises TimeoutError, and cancels it, once the loop's clock is past `until`."""
        task = self._waiting = cast("asyncio.Task[Any]", asyncio.current_task())
        before = task.cancelling()
        self._until, self._expired = until, False
        if self._timer is None or self._timer.when() > until:
            self.close()
            self._timer = self._loop.call_at(until, self._look)
        try:
            return await awaitable
        except asyncio.CancelledError:
            if self._expired and task.uncancel() <= before:
                raise TimeoutError from None
            raise
        finally:
            self._waiting = None

    def close(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """End the wait that has taken too long. A timer that was set for an earlier wait is set again."""
        self._timer = None
        if self._waiting is None:
            return
        if self._loop.time() < self._until:
            self._timer = self._loop.call_at(self._until, self._look)
        else:
            self._expired = True
            self._waiting.cancel()
