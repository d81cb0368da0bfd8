"""Who asks, and what they may do and see."""

from __future__ import annotations

from fnmatch import fnmatchcase

import msgspec

from tunery.registry.keys.api_key import SCOPES, ApiKey
from tunery.registry.names import tenant_of

__all__ = ["Principal"]


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant, with the `scopes` of a key. `adapters` are patterns of the adapters that it may use and know of, None
    for all; `key` is the key's id, or `oidc:` and the subject of a token; None where the server asks for neither."""

    tenant: str
    scopes: tuple[str, ...] = SCOPES
    adapters: tuple[str, ...] | None = None
    key: str | None = None

    @classmethod
    def of(cls, key: ApiKey) -> Principal:
        """Whoever holds a key."""
        return cls.with_rights(tenant=key.tenant, scopes=key.scopes, adapters=key.adapters or None, key=key.id)

    @classmethod
    def with_rights(
        cls, *, tenant: str, scopes: tuple[str, ...], adapters: tuple[str, ...] | None, key: str
    ) -> Principal:
        """Whoever may use `adapters`, None for all of the tenant's; one that may manage keys sees all tenants'."""
        seen = None if "admin" in scopes else (f"{tenant}/*",) if adapters is None else adapters
        return cls(tenant=tenant, scopes=scopes, adapters=seen, key=key)

    @property
    def actor(self) -> str:
        """What is recorded with what they change."""
        return f"key:{self.key}" if self.key else self.tenant

    @property
    def charged(self) -> str | None:
        """The tenant whose share of the engine their requests take, None for that of the adapter they name."""
        return self.tenant if self.key else None

    def may_use(self, adapter: str) -> bool:
        """Whether they may use an adapter, and know that it exists."""
        return self.adapters is None or any(fnmatchcase(adapter, pattern) for pattern in self.adapters)

    def may_make(self, adapter: str) -> bool:
        """Whether they may train an adapter, or change it: one of their own, unless they may use all."""
        return self.adapters is None or (self.may_use(adapter) and tenant_of(adapter) == self.tenant)
