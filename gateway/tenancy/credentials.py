"""All credentials that a server accepts: API keys, and where an issuer is configured, its tokens."""

from __future__ import annotations

from importlib.util import find_spec

from tunery.gateway.tenancy.credential import CredentialStore
from tunery.gateway.tenancy.keyring import Keyring
from tunery.gateway.tenancy.principal import Principal
from tunery.registry.configuration.oidc import OidcSettings
from tunery.registry.errors import Unavailable
from tunery.registry.keys.api_key import ApiKey
from tunery.registry.registry import Registry

__all__ = ["Credentials", "open_credentials"]


class Credentials:
    """API keys, and `tokens`: what looks like a JSON web token is looked for there alone."""

    def __init__(self, keys: CredentialStore, tokens: CredentialStore | None = None) -> None:
        self.keys, self._tokens = keys, tokens

    async def start(self) -> None:
        """Read the keys, and begin to ask the issuer for its own; raise what reading the database raises."""
        await self.keys.start()
        if self._tokens is not None:
            await self._tokens.start()

    async def stop(self) -> None:
        """Read no more."""
        if self._tokens is not None:
            await self._tokens.stop()
        await self.keys.stop()

    async def find(self, token: str) -> Principal | None:
        """See CredentialStore.find."""
        # An API key has one dot, a signed token has two.
        if self._tokens is not None and token.count(".") == 2 and not token.startswith("tn-"):
            return await self._tokens.find(token)
        return await self.keys.find(token)


def open_credentials(registry: Registry, oidc: OidcSettings, *, own_key: ApiKey | None = None) -> Credentials:
    """The credentials of a registry, and of an issuer if there is one.

    Raises Unavailable without the packages for that, and InvalidInput where its certificates cannot be read.
    """
    keys = Keyring(registry, own_key=own_key)
    if not oidc.issuer:
        return Credentials(keys)
    if find_spec("jwt") is None or find_spec("cryptography") is None:
        raise Unavailable(
            f"tokens of {oidc.issuer} cannot be checked without PyJWT: pip install 'tunery[oidc]'", code="oidc_missing"
        )
    # Imported only here: most servers have no issuer.
    from tunery.gateway.tenancy.oidc.tokens import open_tokens

    return Credentials(keys, open_tokens(oidc))
