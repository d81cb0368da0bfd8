"""Resolves which adapter a request is for."""

from __future__ import annotations

from typing import Protocol

from tunery.gateway.api.request.call import Call
from tunery.gateway.api.state import Gateway
from tunery.gateway.resolver import Target

__all__ = ["resolve_target"]


class _NamesModel(Protocol):
    @property
    def model(self) -> str: ...

    @property
    def adapter(self) -> str | None: ...


def resolve_target(call: Call, data: _NamesModel, gateway: Gateway) -> Target:
    """The target that the body's `model`, or else its `adapter` or the call's, names.

    Notes the model for the access log once it is known to exist. Raises as Resolver.resolve, and LimitReached where the
    caller has used up what it may.
    """
    target = gateway.resolver.resolve(data.model, adapter=data.adapter or call.adapter, by=call.principal)
    call.trace.model = data.model
    gateway.limiter.check(call.principal, background=call.background)
    return target
