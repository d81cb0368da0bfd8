"""The public keys that an issuer signs with, read from its JSON web key set (RFC 7517).

Keys that are no use here are passed over: symmetric ones, those for encryption, unknown curves, and RSA keys that are
too short to be safe or too long to be checked quickly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import AllowedPublicKeys

__all__ = ["KeySet", "SigningKey", "read_key_set"]

MAX_KEYS = 64
RSA_BITS = range(2048, 4096 + 1)
MAX_MEMBER = 1024
"""Characters of each number that makes up a key."""

_FITTING = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""The algorithms that each type of key and curve fits."""
_PUBLIC = ("kty", "crv", "n", "e", "x", "y")


class SigningKey(msgspec.Struct, frozen=True):
    """A public key: the id that tokens name it by, the algorithms it may be used with, and a hash that identifies it."""

    id: str | None
    algorithms: tuple[str, ...]
    public: AllowedPublicKeys
    digest: bytes


class KeySet:
    """The keys of an issuer at one time."""

    def __init__(self, keys: Collection[SigningKey]) -> None:
        self._keys = tuple(keys)
        self.digests = frozenset(key.digest for key in keys)

    def find(self, key_id: str | None, algorithm: str) -> SigningKey | None:
        """The key that a token names, or the only one that fits its algorithm where it names none."""
        fitting = [key for key in self._keys if algorithm in key.algorithms and key_id in (None, key.id)]
        return fitting[0] if fitting and (key_id is not None or len(fitting) == 1) else None


class _Document(msgspec.Struct):
    keys: list[dict[str, Any]]


def read_key_set(document: bytes, *, allowed: Collection[str]) -> KeySet:
    """The keys in a document that fit an `allowed` algorithm; raise ValueError saying why there are none."""
    try:
        listed = msgspec.json.decode(document, type=_Document).keys
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"it is not a set of keys: {error}") from error
    if len(listed) > MAX_KEYS:
        raise ValueError(f"it has {len(listed)} keys, more than {MAX_KEYS}")
    keys = [key for jwk in listed if (key := _read_key(jwk, allowed)) is not None]
    if not keys:
        raise ValueError(f"none of its {len(listed)} keys fits {', '.join(allowed)}")
    return KeySet(keys)


def _read_key(jwk: dict[str, Any], allowed: Collection[str]) -> SigningKey | None:
    """A key; None for one that is not used here."""
    public = {name: jwk[name] for name in _PUBLIC if name in jwk}
    if not all(isinstance(value, str) and len(value) <= MAX_MEMBER for value in public.values()):
        return None
    try:
        algorithms = _algorithms(jwk, public, allowed)
        if not algorithms:
            return None
        key: Any = jwt.PyJWK(public, algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size not in RSA_BITS:
        return None
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    key_id = jwk.get("kid")
    return SigningKey(key_id if isinstance(key_id, str) else None, algorithms, key, digest)


def _algorithms(jwk: dict[str, Any], public: dict[str, str], allowed: Collection[str]) -> tuple[str, ...]:
    """The allowed algorithms that a key is for."""
    if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ("verify",)):
        return ()
    kind = public.get("kty", "")
    fitting = _FITTING.get((kind, None if kind == "RSA" else public.get("crv")), ())
    return tuple(name for name in fitting if name in allowed and jwk.get("alg", name) == name)
