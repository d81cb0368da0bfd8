"""Whose a token of the issuer is. A token is verified once; until it expires, a hash of it is enough to know it again.

The signatures of new tokens are checked in a thread, since that takes up to a millisecond.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jwt
import msgspec

from tunery.gateway.tenancy.credential import TokenRefused
from tunery.gateway.tenancy.oidc.claims import principal_for
from tunery.gateway.tenancy.oidc.issuer import Issuer
from tunery.gateway.tenancy.oidc.key_set import SigningKey
from tunery.gateway.tenancy.oidc.signing_keys import SigningKeys
from tunery.gateway.tenancy.oidc.verification import read_header, verify
from tunery.gateway.tenancy.principal import Principal
from tunery.registry.configuration.oidc import OidcSettings
from tunery.registry.errors import Unavailable

__all__ = ["OidcTokens", "open_tokens"]

log = logging.getLogger("tunery.gateway")

MAX_KNOWN = 4096
"""Verified tokens that are remembered."""
WARNING_SECONDS = 60.0
"""Seconds between warnings of genuine tokens that are refused."""

_BY_THE_ISSUER = (
    jwt.InvalidAudienceError,
    jwt.InvalidIssuerError,
    jwt.MissingRequiredClaimError,
    jwt.ImmatureSignatureError,
)
"""What is found only after the signature was good, so that a wrong configuration is likely."""


class _Known(msgspec.Struct, frozen=True):
    """What a verified token came to; `until` is Unix time in seconds, `key` the digest of the key that signed it."""

    principal: Principal
    until: float
    key: bytes


class OidcTokens:
    """The tokens of an issuer; a CredentialStore. `clock` is Unix time in seconds."""

    def __init__(self, settings: OidcSettings, *, keys: SigningKeys, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._keys, self._clock = settings, keys, clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "oidc")
        self._next_warning = 0.0

    async def start(self) -> None:
        """Begin to ask the issuer for its keys. One that cannot be reached is logged and asked again."""
        await self._keys.start()

    async def stop(self) -> None:
        """Ask no more."""
        await self._keys.stop()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def find(self, token: str) -> Principal | None:
        """See CredentialStore.find."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._known.get(digest)
        if known is not None and self._is_good(known):
            self._known.move_to_end(digest)
            return known.principal
        known = await self._verified(token)
        self._known[digest] = known
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return known.principal

    def _is_good(self, known: _Known) -> bool:
        """Whether a token has not expired, and the issuer has not withdrawn the key that signed it."""
        keys = self._keys.current
        return known.until > self._clock() and keys is not None and known.key in keys.digests

    async def _verified(self, token: str) -> _Known:
        header = read_header(token, allowed=self._settings.algorithms)
        if header is None:
            raise self._invalid()
        key = await self._keys.find(header.kid, header.alg)
        if key is None:
            raise self._invalid() if self._keys.current is not None else self._unreachable()
        check = partial(self._check, token, key, header.alg)
        return await asyncio.get_running_loop().run_in_executor(self._thread, check)

    def _check(self, token: str, key: SigningKey, algorithm: str) -> _Known:
        try:
            claims = verify(token, key, algorithm=algorithm, settings=self._settings)
            principal = principal_for(claims, self._settings)
        except TokenRefused as error:
            self._warn(error.message)
            raise
        except jwt.ExpiredSignatureError as error:
            raise TokenRefused(
                f"the token has expired; get a new one from {self._settings.issuer}", code="token_expired"
            ) from error
        except jwt.PyJWTError as error:
            if isinstance(error, _BY_THE_ISSUER):
                self._warn(str(error))
            raise self._invalid() from error
        return _Known(principal, int(claims["exp"]) + self._settings.leeway_seconds, key.digest)

    def _warn(self, reason: str) -> None:
        """Log why a genuine token is refused, once in a while; whoever holds it learns less."""
        now = time.monotonic()
        if now >= self._next_warning:
            self._next_warning = now + WARNING_SECONDS
            log.warning("a genuine token of %s is refused, see [oidc]: %s", self._settings.issuer, reason)

    def _invalid(self) -> TokenRefused:
        return TokenRefused(
            f"the token is not valid here; get a new one from {self._settings.issuer}", code="invalid_api_key"
        )

    def _unreachable(self) -> Unavailable:
        return Unavailable(
            f"{self._settings.issuer} could not be asked for its keys yet, so tokens cannot be checked; try again in a "
            "few seconds",
            code="issuer_unreachable",
        )


def open_tokens(settings: OidcSettings) -> OidcTokens:
    """The tokens of the configured issuer; raise InvalidInput where its certificates cannot be read."""
    keys = SigningKeys(
        Issuer(settings),
        name=settings.issuer,
        refresh_seconds=settings.refresh_seconds,
        cooldown_seconds=settings.cooldown_seconds,
    )
    return OidcTokens(settings, keys=keys)
