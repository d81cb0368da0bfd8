"""Resolves which adapter a request is for."""

from __future__ import annotations

from typing import Any, Protocol

from litestar import Request

from tunery.gateway.api.http.trace import trace_of
from tunery.gateway.api.state import Gateway
from tunery.gateway.resolver import Target

__all__ = ["resolve_target"]


class _NamesModel(Protocol):
    @property
    def model(self) -> str: ...

    @property
    def adapter(self) -> str | None: ...


def resolve_target(request: Request[Any, Any, Any], data: _NamesModel, gateway: Gateway) -> Target:
    """The target that the body's `model`, or else its `adapter` or the `x-tunery-adapter` header, names.

    Notes the model for the access log once it is known to exist. Raises as Resolver.resolve.
    """
    target = gateway.resolver.resolve(data.model, adapter=data.adapter or request.headers.get("x-tunery-adapter"))
    trace_of(request).model = data.model
    return target
