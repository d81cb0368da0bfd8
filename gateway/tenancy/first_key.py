"""Before a server listens: it must ask for keys, or be reached from this machine alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address

from tunery.registry.configuration.settings import Settings
from tunery.registry.errors import InvalidInput
from tunery.registry.keys.api_key import SCOPES, ApiKey
from tunery.registry.registry import Registry

__all__ = ["require_keys"]


def require_keys(
    registry: Registry,
    settings: Settings,
    *,
    host: str,
    own_key: ApiKey | None,
    say: Callable[[str], None],
) -> None:
    """Make the first key of a registry that never had one, and `say` it, unless the server has an `own_key`.

    `host` is the address to listen on. Where tokens of an issuer are accepted, they are enough, and no key is made.

    Raises InvalidInput where nobody could have a key (no_active_key), or everybody would do without one
    (auth_required).
    """
    if not settings.serve.auth:
        if not ip_address(host).is_loopback:
            raise InvalidInput(
                f"without API keys a server listens on loopback only, and this would be {host}; leave out --no-auth, and "
                "create keys with tunery keys create",
                code="auth_required",
                param="auth",
            )
        return
    if own_key is not None or settings.oidc.issuer:
        return
    keys = registry.keys.list()
    if not keys:
        tenant = settings.jobs.tenant
        key, token = registry.keys.create(tenant=tenant, scopes=SCOPES, label="first key", actor="tunery serve")
        say(f"API key {key.id} with all scopes, shown this once: {token}")
    elif all(key.state(time.time()) != "active" for key in keys):
        raise InvalidInput(
            "no API key is active, so nobody could use this server; create one with tunery keys create --tenant TENANT",
            code="no_active_key",
        )
