"""Check a token: what its header names, then its signature and the claims that every token has (RFC 8725)."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import jwt
import msgspec

from tunery.gateway.tenancy.oidc.key_set import SigningKey
from tunery.registry.configuration.oidc import OidcSettings

__all__ = ["Header", "read_header", "verify"]

MAX_TOKEN = 8 * 2**10
"""Characters of a token."""
MAX_HEADER = 2 * 2**10
MAX_KEY_ID = 512

_FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_TYPES = (None, "jwt", "at+jwt", "application/at+jwt", "application/jwt")
"""Values of `typ`: other tokens that an issuer signs, such as those for logging out, are not for access."""


class Header(msgspec.Struct, frozen=True):
    """What is read of a header before anything is checked. Keys that it carries or links to are not looked at."""

    alg: str
    kid: str | None = None
    typ: str | None = None


def read_header(token: str, *, allowed: tuple[str, ...]) -> Header | None:
    """The header of a token that may be good; None for one that cannot be."""
    if len(token) > MAX_TOKEN or _FORM.fullmatch(token) is None:
        return None
    encoded = token.partition(".")[0]
    if len(encoded) > MAX_HEADER:
        return None
    try:
        header = msgspec.json.decode(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)), type=Header)
    except (binascii.Error, msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    known_type = (header.typ.lower() if header.typ else header.typ) in _TYPES
    return header if header.alg in allowed and known_type and len(header.kid or "") <= MAX_KEY_ID else None


def verify(token: str, key: SigningKey, *, algorithm: str, settings: OidcSettings) -> dict[str, Any]:
    """The claims of a token that `key` has signed for this server; raise jwt.PyJWTError for any other."""
    try:
        return jwt.decode(
            token,
            key.public,
            algorithms=[algorithm],
            audience=settings.audience,
            issuer=settings.issuer,
            leeway=settings.leeway_seconds,
            options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise jwt.InvalidTokenError("it cannot be read") from error
