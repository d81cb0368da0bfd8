"""With whom an adapter is shared."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from tunery.registry.errors import InvalidInput
from tunery.registry.keys.api_key import EVERYBODY, check_tenant
from tunery.registry.names import tenant_of

__all__ = ["EVERYBODY", "Share", "check_tenants"]

MAX_TENANTS = 1000


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """`adapter` may be asked by `tenants`, sorted, or by all where they are `("all",)`.

    With `share_prefixes` the requests of all of them use one prefix cache for it.
    """

    adapter: str
    tenants: tuple[str, ...]
    share_prefixes: bool = False
    shared_at: float
    shared_by: str

    def covers(self, tenant: str) -> bool:
        """Whether a tenant may ask the adapter because of this."""
        return EVERYBODY in self.tenants or tenant in self.tenants


def check_tenants(adapter: str, tenants: Collection[str]) -> tuple[str, ...]:
    """The tenants, sorted, each once; raise InvalidInput for what is no tenant, the owner, or nobody."""
    wanted = sorted(set(tenants))
    if EVERYBODY in wanted:
        return (EVERYBODY,)
    for tenant in wanted:
        check_tenant(tenant, param="tenants")
    if tenant_of(adapter) in wanted:
        raise InvalidInput(
            f"{adapter} is {tenant_of(adapter)}'s own; name other tenants", code="invalid_tenants", param="tenants"
        )
    if not 0 < len(wanted) <= MAX_TENANTS:
        raise InvalidInput(
            f"name 1 to {MAX_TENANTS} tenants to share {adapter} with, or {EVERYBODY}",
            code="invalid_tenants",
            param="tenants",
        )
    return tuple(wanted)
