"""The series that start at 0 when a gateway does, and the values of their labels."""

from __future__ import annotations

import msgspec

from tunery.gateway.metrics import table
from tunery.registry.configuration.limits import Limits

__all__ = ["CODED", "DISCONNECTED", "STARTED", "UNKNOWN_ROUTE"]

DISCONNECTED, NOT_FOUND, METHOD_NOT_ALLOWED = "499", "404", "405"
"""Statuses; 499 is nginx's for a client that disconnected before there was a response."""
UNKNOWN_ROUTE = "unknown"
"""The route of requests that match none."""
STARTED = (
    (table.TRACE_SPANS, [("exported",), ("dropped",)]),
    (table.WEBHOOK_ATTEMPTS, [("delivered",), ("retried",), ("given_up",)]),
    (table.HTTP_REQUESTS, [(UNKNOWN_ROUTE, NOT_FOUND), (UNKNOWN_ROUTE, METHOD_NOT_ALLOWED)]),
    (table.LIMIT_REFUSALS, [(field.name,) for field in msgspec.structs.fields(Limits)]),
    (table.BATCH_REQUESTS, [("completed",), ("failed",)]),
    (
        table.HTTP_ERRORS,
        [
            ("401", "invalid_api_key"),
            ("401", "missing_api_key"),
            ("403", "insufficient_scope"),
            ("404", "model_not_found"),
            ("429", "overloaded"),
            ("500", "artifact_damaged"),
            ("500", "disk_full"),
            ("500", "internal_error"),
            ("503", "registry_busy"),
        ],
    ),
    (table.REGISTRY_FAILURES, [("registry_busy",), ("disk_full",), ("storage_failed",), ("registry_replaced",)]),
    (table.REGISTRY_SECONDS, [("read",), ("write",)]),
)
"""Series that start at 0, beside those of routes, adapters and tenants."""
CODED = (table.HTTP_ERRORS, table.REGISTRY_FAILURES)
"""Metrics whose last label is the code of an error."""
