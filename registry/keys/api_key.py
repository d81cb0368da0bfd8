"""An API key, and the token that its owner holds: `tn-ID.SECRET`.

The registry keeps the SHA-256 of the secret alone. A secret has 256 random bits, so a slow hash as for passwords would
protect it no better.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from typing import Literal

import msgspec

from tunery.registry.errors import InvalidInput, UnknownName
from tunery.registry.names import SCOPES

__all__ = [
    "SCOPES",
    "ApiKey",
    "KeyState",
    "check_patterns",
    "check_scopes",
    "check_tenant",
    "matches",
    "new_key",
    "new_token",
    "split_token",
]

MAX_LABEL = 128
PREFIX = "tn-"
KeyState = Literal["active", "expired", "revoked"]

_TOKEN = re.compile(r"tn-([a-z0-9]{12})\.([A-Za-z0-9_-]{43})")
_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_PATTERN = re.compile(r"[a-z0-9._*?-]{1,64}/[a-z0-9._*?-]{1,64}")
_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_NO_HASH = hashlib.sha256(b"").hexdigest()


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What the registry knows of a key; times are Unix times in seconds.

    `adapters` are patterns of the adapters that it may use, `tenant/name` with `*` and `?`; none for all of the tenant's.
    `replaced_by` is the key that a rotation made.
    """

    id: str
    tenant: str
    label: str
    scopes: tuple[str, ...]
    adapters: tuple[str, ...] = ()
    secret_hash: str
    created_at: float
    created_by: str
    expires_at: float | None = None
    revoked_at: float | None = None
    replaced_by: str | None = None

    def state(self, now: float) -> KeyState:
        """Whether the key is good at a time."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


def new_key(
    *,
    tenant: str,
    scopes: Collection[str],
    created_at: float,
    created_by: str,
    label: str = "",
    adapters: Collection[str] = (),
    expires_at: float | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its token, neither stored anywhere; raise InvalidInput."""
    if len(label) > MAX_LABEL or not label.isprintable():
        raise InvalidInput(f"a label has at most {MAX_LABEL} printable characters", param="label")
    key_id, secret_hash, token = new_token()
    key = ApiKey(
        id=key_id,
        tenant=check_tenant(tenant),
        label=label,
        scopes=check_scopes(scopes),
        adapters=check_patterns(adapters),
        secret_hash=secret_hash,
        created_at=created_at,
        created_by=created_by,
        expires_at=expires_at,
    )
    return key, token


def new_token() -> tuple[str, str, str]:
    """A new key's id, the SHA-256 of its secret, and its token, which is nowhere else."""
    key_id, secret = "".join(secrets.choice(_ID_ALPHABET) for _ in range(12)), secrets.token_urlsafe(32)
    return key_id, _hash(secret), f"{PREFIX}{key_id}.{secret}"


def split_token(token: str) -> tuple[str, str] | None:
    """The id and the secret in a token; None for anything else."""
    parts = _TOKEN.fullmatch(token)
    return (parts[1], parts[2]) if parts else None


def matches(key: ApiKey | None, secret: str) -> bool:
    """Whether a secret is the key's, in a time that depends on neither; False without a key."""
    return hmac.compare_digest(_hash(secret), key.secret_hash if key else _NO_HASH) and key is not None


def check_scopes(scopes: Collection[str]) -> tuple[str, ...]:
    """The scopes in their order, each once; raise UnknownName, or InvalidInput where there are none."""
    for scope in scopes:
        if scope not in SCOPES:
            raise UnknownName("scope", scope, SCOPES, param="scopes")
    if not scopes:
        raise InvalidInput(f"a key needs a scope: {', '.join(SCOPES)}", param="scopes")
    return tuple(scope for scope in SCOPES if scope in scopes)


def check_tenant(tenant: str) -> str:
    """Return `tenant` when it is the first half of an adapter's name; raise InvalidInput (invalid_name) otherwise."""
    if _TENANT.fullmatch(tenant) is None or ".." in tenant:
        raise InvalidInput(
            f"{tenant!r} is not a tenant: write lower-case letters, digits, '.', '_' and '-', for example acme",
            code="invalid_name",
            param="tenant",
        )
    return tenant


def check_patterns(patterns: Collection[str]) -> tuple[str, ...]:
    """The patterns of adapters, each once; raise InvalidInput (invalid_name) for what can be no adapter's."""
    for pattern in patterns:
        if _PATTERN.fullmatch(pattern) is None:
            raise InvalidInput(
                f"{pattern!r} is no pattern of adapters: write tenant/name, where * stands for anything and ? for one "
                "character, for example acme/*",
                code="invalid_name",
                param="adapters",
            )
    return tuple(dict.fromkeys(patterns))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
