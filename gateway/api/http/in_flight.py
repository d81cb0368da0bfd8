"""Counts the HTTP requests that are being answered, so that a server which shuts down knows when none is left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

__all__ = ["RequestsInFlight"]


class RequestsInFlight:
    """How many requests are being answered, to the last byte of their responses."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Count one more while the context lasts."""
        self.count += 1
        self._none.clear()
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                self._none.set()

    async def idle(self) -> None:
        """Wait until no request is being answered."""
        if self.count:
            await self._none.wait()
