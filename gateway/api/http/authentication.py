"""Find out who sends each request, before its body is read."""

from __future__ import annotations

from typing import Any

from litestar import Request

from tunery.gateway.api.http.errors import Refused
from tunery.gateway.tenancy.credential import CredentialStore, TokenRefused
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import SCOPE

__all__ = ["Authentication", "principal_of"]

_STATE = "tunery_principal"


class Authentication:
    """Checks the key or token of each request. Without `credentials` everybody is `anyone`."""

    def __init__(self, credentials: CredentialStore | None, *, anyone: Principal) -> None:
        self._credentials, self._anyone = credentials, anyone

    async def check(self, request: Request[Any, Any, Any]) -> None:
        """Note who sends a request; raise Refused: 401 without a good key, 403 for one without the scope."""
        scope: tuple[str, ...] | None = request.route_handler.opt.get(SCOPE)
        if self._credentials is None or scope is None:
            request.scope["state"][_STATE] = self._anyone
            return
        token = _token(request)
        if token is None:
            raise Refused(
                "no API key was sent; send one as Authorization: Bearer tn-…", status=401, code="missing_api_key"
            )
        try:
            principal = await self._credentials.find(token)
        except TokenRefused as error:
            raise Refused(error.message, status=403 if error.genuine else 401, code=error.code) from error
        if principal is None:
            raise Refused("the API key is not valid; ask for a new one", status=401, code="invalid_api_key")
        if not set(scope) & set(principal.scopes):
            raise Refused(
                f"the API key {principal.key} may not do this: it needs the scope {' or '.join(scope)}, and has "
                f"{', '.join(principal.scopes) or 'none'}",
                status=403,
                code="insufficient_scope",
            )
        request.scope["state"][_STATE] = principal


def principal_of(request: Request[Any, Any, Any]) -> Principal:
    """Who sent a request."""
    principal: Principal = request.scope["state"][_STATE]
    return principal


def _token(request: Request[Any, Any, Any]) -> str | None:
    """The token of the Authorization header; None without one."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if kind.lower() == "bearer" else None
