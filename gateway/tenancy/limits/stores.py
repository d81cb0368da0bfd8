"""The counters that the settings choose."""

from __future__ import annotations

from tunery.gateway.tenancy.limits.interface import Counters
from tunery.gateway.tenancy.limits.memory import MemoryCounters
from tunery.gateway.tenancy.limits.shared import SharedCounters
from tunery.registry.configuration.limits import LimitsSettings
from tunery.registry.errors import InvalidInput
from tunery.registry.registry import Registry

__all__ = ["open_counters"]


def open_counters(settings: LimitsSettings, registry: Registry) -> Counters:
    """The counters of `limits.store`; raise InvalidInput for Redis without its address or its package."""
    if settings.store == "memory":
        return MemoryCounters()
    if settings.store == "database":
        return SharedCounters(registry.limit_counters)
    if not settings.redis_url:
        raise InvalidInput(
            "limits.store is redis and limits.redis_url is not set; write, for example, redis://localhost:6379/0",
            code="invalid_settings",
        )
    try:
        from tunery.gateway.tenancy.limits.redis_counters import RedisCounters
    except ImportError as error:
        raise InvalidInput(
            "limits.store is redis and the package redis is not installed; install tunery[redis]",
            code="invalid_settings",
        ) from error
    return SharedCounters(RedisCounters(settings.redis_url))
