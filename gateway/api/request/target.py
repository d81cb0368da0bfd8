"""Resolves which adapter a request is for."""

from __future__ import annotations

from typing import Protocol

from tunery.gateway.api.request.call import Call
from tunery.gateway.api.state import Gateway
from tunery.gateway.resolver import Target

__all__ = ["resolve_target"]

MAX_LOGGED = 64 * 1024
"""Bytes of a request's body that are logged where prompts are."""


class _NamesModel(Protocol):
    @property
    def model(self) -> str: ...

    @property
    def adapter(self) -> str | None: ...


def resolve_target(call: Call, data: _NamesModel, gateway: Gateway) -> Target:
    """The target that the body's `model`, or else its `adapter` or the call's, names.

    Notes what the access log and a span show of it, once it is known to exist. Raises as Resolver.resolve, and
    LimitReached where the caller has used up what it may.
    """
    target = gateway.resolver.resolve(data.model, adapter=data.adapter or call.adapter, by=call.principal)
    trace = call.trace
    trace.model, trace.fingerprint = data.model, target.fingerprint
    if target.versions:
        trace.digest = ",".join(version.digest for version in target.versions)
    if trace.span is not None and trace.span.recorded:
        trace.options = data
    if gateway.settings.log_prompts:
        trace.prompt = call.body[:MAX_LOGGED].decode(errors="replace")
    gateway.limiter.check(call.principal, background=call.background)
    return target
