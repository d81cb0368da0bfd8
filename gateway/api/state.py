"""Owns what every handler works with, wired once when the application is made."""

from __future__ import annotations

from dataclasses import dataclass

from tunery.gateway.engine.interface import Engine
from tunery.gateway.engine.messages import Ready
from tunery.gateway.metrics import Metrics
from tunery.gateway.resolver import Resolver
from tunery.plugins.data.renderer import Renderer
from tunery.registry.errors import Overloaded, Unavailable
from tunery.registry.registry import Registry
from tunery.registry.settings import ServeSettings

__all__ = ["Gateway"]


@dataclass
class Gateway:
    """The parts of a running gateway, and how many requests it has in hand."""

    settings: ServeSettings
    registry: Registry
    engine: Engine
    renderer: Renderer
    resolver: Resolver
    metrics: Metrics
    in_flight: int = 0
    draining: bool = False

    def engine_ready(self) -> Ready:
        """The engine's description; raise Unavailable while it cannot answer."""
        ready = self.engine.ready
        if ready is None:
            raise Unavailable("the engine is starting; try again in a few seconds", code="engine_starting")
        return ready

    def admit(self, count: int) -> None:
        """Make sure that `count` more requests may wait."""
        most = self.settings.max_batch + self.settings.max_waiting
        if self.in_flight + count > most:
            raise Overloaded(f"{self.in_flight} requests are in hand and {most} is the most; try again in a second")
