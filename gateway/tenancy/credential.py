"""What every kind of credential has in common: API keys, and the tokens of an issuer."""

from __future__ import annotations

from typing import Protocol

from tunery.gateway.tenancy.principal import Principal

__all__ = ["CredentialStore", "TokenRefused"]


class TokenRefused(Exception):
    """A token that is of no use here, and why; `genuine` where it is good and only grants nothing."""

    def __init__(self, message: str, *, code: str, genuine: bool = False) -> None:
        super().__init__(message)
        self.message, self.code, self.genuine = message, code, genuine


class CredentialStore(Protocol):
    """Finds out whose a token is. `start` and `stop` belong to the gateway's event loop."""

    async def start(self) -> None:
        """Begin to follow what changes which tokens are good."""

    async def stop(self) -> None:
        """Follow it no more."""

    async def find(self, token: str) -> Principal | None:
        """Whose a token is; None for one that is not valid.

        Raises TokenRefused where more may be said of it, and Unavailable where it cannot be checked now.
        """
