"""Which keys of an issuer are used, and for what."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tests.gateway.tenancy.oidc.issuer import private_key, public_jwk
from tunery.gateway.tenancy.oidc.key_set import KeySet, read_key_set
from tunery.registry.configuration.oidc import ALGORITHMS


def read(*jwks: Any, allowed: tuple[str, ...] = ALGORITHMS) -> KeySet:
    return read_key_set(json.dumps({"keys": jwks}).encode(), allowed=allowed)


def test_a_key_is_used_for_the_algorithms_of_its_type() -> None:
    keys = read(public_jwk("RS256-one"), public_jwk("ES256-one"), public_jwk("EdDSA-one"))
    assert keys.find("RS256-one", "PS512") is not None
    assert keys.find("ES256-one", "ES256") is not None
    assert keys.find("EdDSA-one", "EdDSA") is not None
    for kid, algorithm in (("RS256-one", "ES256"), ("ES256-one", "RS256"), ("ES256-one", "ES384"), ("none", "RS256")):
        assert keys.find(kid, algorithm) is None
    for algorithm in ("none", "HS256", ""):
        assert keys.find("RS256-one", algorithm) is None


def test_a_key_that_names_its_algorithm_is_used_for_that_alone() -> None:
    keys = read(public_jwk("RS256-one", alg="RS256"))
    assert keys.find("RS256-one", "RS256") is not None
    assert keys.find("RS256-one", "PS256") is None


def test_only_what_is_allowed() -> None:
    keys = read(public_jwk("RS256-one"), public_jwk("ES256-one"), allowed=("ES256",))
    assert keys.find("RS256-one", "RS256") is None
    assert keys.find("ES256-one", "ES256") is not None


def test_without_an_id_the_only_key_that_fits_is_meant() -> None:
    one, other = public_jwk("RS256-one"), public_jwk("RS256-two")
    assert read(one, public_jwk("ES256-one")).find(None, "RS256") is not None
    assert read(one, other).find(None, "RS256") is None


def test_the_private_half_of_a_key_is_not_read() -> None:
    jwk = {**RSAAlgorithm.to_jwk(private_key("RS256-one"), as_dict=True), "kid": "leaked"}
    assert "d" in jwk
    jwk.pop("key_ops", None)
    key = read(jwk).find("leaked", "RS256")
    assert key is not None
    assert not hasattr(key.public, "private_numbers")


SHORT = RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True)
CURVE = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256K1()).public_key(), as_dict=True)


@pytest.mark.parametrize(
    "jwk",
    [
        {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "oct", "k": "c2VjcmV0", "alg": "RS256"},
        SHORT,
        CURVE,
        {},
        {"kty": ["RSA"]},
        {"kty": "RSA"},
        {"kty": "RSA", "n": "AQAB", "e": ""},
        {"kty": "RSA", "n": "A" * 100_000, "e": "AQAB"},
        {"kty": "RSA", "n": "é", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "x": "AQAB", "y": "AQAB"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AQAB"},
        {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
    ],
    ids=range(13),
)
def test_keys_of_no_use_are_passed_over(jwk: dict[str, Any]) -> None:
    keys = read({**jwk, "kid": "odd"}, public_jwk("RS256-one"))
    assert len(keys.digests) == 1
    assert keys.find("RS256-one", "RS256") is not None
    with pytest.raises(ValueError, match="none of its 1 keys fits"):
        read(jwk)


@pytest.mark.parametrize("more", [{"use": "enc"}, {"key_ops": ["sign"]}, {"key_ops": 5}, {"alg": "RSA-OAEP"}])
def test_keys_for_something_else_are_passed_over(more: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="none of its 1 keys fits"):
        read(public_jwk("RS256-one", **more))


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys": 1}', b'{"keys": [1]}', b'{"keys": ' + b"[" * 100_000, b"\xff", b'{"keys": []}'],
)
def test_what_is_no_key_set(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"it is not a set of keys|none of its 0 keys"):
        read_key_set(document, allowed=ALGORITHMS)


def test_a_key_set_has_a_limit() -> None:
    with pytest.raises(ValueError, match="65 keys, more than 64"):
        read(*[{"kty": "oct"}] * 65)
