"""Find out who sends each request, before its body is read."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request

from tunery.gateway.api.http.errors import Refused
from tunery.gateway.api.http.trace import trace_of
from tunery.gateway.tenancy.credential import CredentialStore, TokenRefused
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import SCOPE
from tunery.gateway.tenancy.shares import SharedAdapters
from tunery.registry.audit.origin import Origin, begin

__all__ = ["Authentication", "principal_of"]

_STATE = "tunery_principal"
MAX_SOURCE = 64
"""Characters of an address that the audit log keeps."""


class Authentication:
    """Checks the key or token of each request. Without `credentials` everybody is `anyone`. What is in `shares` may be used
    too."""

    def __init__(self, credentials: CredentialStore | None, *, anyone: Principal, shares: SharedAdapters) -> None:
        self._credentials, self._anyone, self._shares = credentials, anyone, shares

    async def check(self, request: Request[Any, Any, Any]) -> None:
        """Note who sends a request; raise Refused: 401 without a good key, 403 for one without the scope."""
        scope: tuple[str, ...] | None = request.route_handler.opt.get(SCOPE)
        if self._credentials is None or scope is None:
            _begin(request, self._anyone)
            return
        token = _token(request)
        if token is None:
            raise _unauthorized("no API key was sent; send one as Authorization: Bearer tn-…", "missing_api_key")
        try:
            principal = await self._credentials.find(token)
        except TokenRefused as error:
            if error.genuine:
                raise Refused(error.message, status=403, code=error.code) from error
            raise _unauthorized(error.message, error.code) from error
        if principal is None:
            raise _unauthorized("the API key is not valid; ask for a new one", "invalid_api_key")
        if not set(scope) & set(principal.scopes):
            raise Refused(
                f"the API key {principal.key} may not do this: it needs the scope {' or '.join(scope)}, and has "
                f"{', '.join(principal.scopes) or 'none'}",
                status=403,
                code="insufficient_scope",
            )
        _begin(request, msgspec.structs.replace(principal, shares=self._shares))


def principal_of(request: Request[Any, Any, Any]) -> Principal:
    """Who sent a request."""
    principal: Principal = request.scope["state"][_STATE]
    return principal


def _begin(request: Request[Any, Any, Any], principal: Principal) -> None:
    """Note who sends a request, for the handler and for the audit log."""
    request.scope["state"][_STATE] = principal
    client = request.client
    begin(
        Origin(
            actor=principal.actor,
            request_id=trace_of(request).request_id,
            source=client.host[:MAX_SOURCE] if client else "",
        )
    )


def _unauthorized(message: str, code: str) -> Refused:
    """RFC 6750: a challenge, which names an error only where a token was sent."""
    challenge = "Bearer" if code == "missing_api_key" else 'Bearer error="invalid_token"'
    return Refused(message, status=401, code=code, headers={"www-authenticate": challenge})


def _token(request: Request[Any, Any, Any]) -> str | None:
    """The token of the Authorization header; None without one."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if kind.lower() == "bearer" else None
