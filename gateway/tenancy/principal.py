"""Who sent a request, and what they may do and see."""

from __future__ import annotations

import msgspec

from tunery.registry.keys.api_key import SCOPES, ApiKey

__all__ = ["Principal"]


class Principal(msgspec.Struct, frozen=True):
    """A tenant with the rights of a key; without a key, where the server asks for none, with all of them."""

    tenant: str
    key: ApiKey | None = None

    @property
    def scopes(self) -> tuple[str, ...]:
        """What may be done."""
        return self.key.scopes if self.key else SCOPES

    @property
    def actor(self) -> str:
        """What is recorded with what is changed."""
        return f"key:{self.key.id}" if self.key else self.tenant

    @property
    def is_operator(self) -> bool:
        """Whether all tenants' things may be seen."""
        return "admin" in self.scopes

    def may_use(self, adapter: str) -> bool:
        """Whether an adapter may be used, and known to exist."""
        return self.key is None or self.is_operator or self.key.may_use(adapter)
