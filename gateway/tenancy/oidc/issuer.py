"""Ask an issuer for its keys: its discovery document, then the key set that this names.

Each answer is bounded in size and time, and no redirect is followed: only what is configured, or what the issuer itself
names, is connected to.
"""

from __future__ import annotations

import asyncio
import ssl
from importlib.metadata import version

import httpx2
import msgspec

from tunery.gateway.tenancy.oidc.key_set import KeySet, read_key_set
from tunery.registry.configuration.oidc import OidcSettings, url_problem
from tunery.registry.errors import InvalidInput, Unavailable

__all__ = ["Issuer"]

FETCH_SECONDS = 10.0
"""Seconds for both documents together."""
MAX_DOCUMENT = 256 * 2**10
"""Bytes of each document."""
_DISCOVERY = "/.well-known/openid-configuration"


class _Discovery(msgspec.Struct):
    issuer: str
    jwks_uri: str


class Issuer:
    """The configured issuer; raises InvalidInput where `ca_file` cannot be read."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._client = httpx2.AsyncClient(
            verify=_ssl_context(settings.ca_file),
            follow_redirects=False,
            timeout=FETCH_SECONDS,
            limits=httpx2.Limits(max_keepalive_connections=0),
            headers={
                "accept": "application/json",
                # Decompressed, a small document might fill the memory.
                "accept-encoding": "identity",
                "user-agent": f"tunery/{version('tunery')}",
            },
        )

    async def fetch_keys(self) -> KeySet:
        """The keys that it signs with now; raise Unavailable saying why there are none."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                document = await self._get(self._settings.jwks_uri or await self._discover())
            return await asyncio.to_thread(read_key_set, document, allowed=self._settings.algorithms)
        except TimeoutError as error:
            raise Unavailable(f"it did not answer within {FETCH_SECONDS:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise Unavailable(f"{type(error).__name__}: {error}"[:500]) from error
        except ValueError as error:
            raise Unavailable(f"its key set cannot be used: {error}"[:500]) from error

    async def close(self) -> None:
        """Close what is open to it."""
        await self._client.aclose()

    async def _discover(self) -> str:
        """Where its discovery document says that its keys are."""
        document = await self._get(self._settings.issuer.rstrip("/") + _DISCOVERY)
        try:
            found = msgspec.json.decode(document, type=_Discovery)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Unavailable(f"its discovery document cannot be used: {error}"[:500]) from error
        if found.issuer != self._settings.issuer:
            raise Unavailable(
                f"its discovery document is of another issuer, {found.issuer[:200]!r}: set oidc.issuer to it"
            )
        if (problem := url_problem(found.jwks_uri)) is not None:
            raise Unavailable(f"the jwks_uri of its discovery document {problem}")
        return found.jwks_uri

    async def _get(self, url: str) -> bytes:
        async with self._client.stream("GET", url) as response:
            if response.status_code != 200:
                what = "redirects are not followed" if response.is_redirect else response.reason_phrase
                raise Unavailable(f"{url} answers with HTTP {response.status_code}: {what}")
            document = bytearray()
            async for part in response.aiter_raw():
                document += part
                if len(document) > MAX_DOCUMENT:
                    raise Unavailable(f"{url} answers with more than {MAX_DOCUMENT // 1024} KiB")
        return bytes(document)


def _ssl_context(ca_file: str) -> ssl.SSLContext:
    if not ca_file:
        return httpx2.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise InvalidInput(f"oidc.ca_file: {ca_file} cannot be read: {error}", code="invalid_settings") from error
