"""Tokens of an issuer in place of API keys, and forged, stolen, stale and broken ones."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from openai import AsyncOpenAI

from tests.gateway.api.conftest import REPLY, Served
from tests.gateway.tenancy.oidc.issuer import JWKS, Issuer, issuing, private_key, public_jwk, reply
from tunery.registry.configuration.oidc import OidcSettings
from tunery.registry.keys.api_key import SCOPES

MODELS = "/v1/models"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as issuer:
        yield issuer


@pytest.fixture
def oidc(issuer: Issuer) -> OidcSettings:
    return issuer.settings(leeway_seconds=5, cooldown_seconds=3600)


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, verify=False, timeout=60) as client:
        yield client


async def ask(http: httpx.AsyncClient, token: str, path: str = MODELS) -> httpx.Response:
    return await http.get(path, headers={"authorization": f"Bearer {token}"})


def encoded(value: object) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def unsigned(header: object, claims: object, sign: Callable[[bytes], bytes] = lambda _: b"\0" * 256) -> str:
    """A token with any header and any signature."""
    signed = f"{encoded(header)}.{encoded(claims)}"
    return f"{signed}.{encoded(sign(signed.encode()))}"


async def test_a_token_is_as_good_as_a_key(served: Served, http: httpx.AsyncClient, issuer: Issuer) -> None:
    served.publish("acme/support", alias="production")
    served.publish("globex/secret")
    client = AsyncOpenAI(
        base_url=f"{served.url}/v1",
        api_key=issuer.token(),
        max_retries=0,
        http_client=httpx2.AsyncClient(verify=False, timeout=600),
    )
    answer = await client.chat.completions.create(model="acme/support", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == REPLY
    assert "acme/support" in [model.id async for model in client.models.list()]
    await client.close()
    assert "globex" not in (await ask(http, issuer.token())).text
    assert "globex" in (await ask(http, issuer.token(tenant="globex"))).text
    assert "globex" in (await ask(http, issuer.token(scope="tunery:infer tunery:admin"))).text
    _, key = served.gateway.registry.keys.create(tenant="acme", scopes=SCOPES, actor="test")
    assert (await ask(http, key)).status_code == 200, "keys are good beside tokens"


@pytest.mark.parametrize("key", ["ES256-one", "EdDSA-one"])
async def test_other_algorithms(http: httpx.AsyncClient, issuer: Issuer, key: str) -> None:
    issuer.keys = ["RS256-one", key]
    assert (await ask(http, issuer.token(key))).status_code == 200


async def test_a_token_does_what_its_scopes_allow(served: Served, http: httpx.AsyncClient, issuer: Issuer) -> None:
    for scope, held in (("", "none"), ("openid tunery:publish", "publish"), (["tunery:metrics"], "metrics")):
        answer = await ask(http, issuer.token(scope=scope))
        assert answer.status_code == 403
        error = answer.json()["error"]
        assert error["code"] == "insufficient_scope"
        assert error["message"].endswith(f"and has {held}")
        assert "oidc:alice" in error["message"]
    for tenant in (None, "", "Acme", "../acme", ["acme"]):
        answer = await ask(http, issuer.token(tenant=tenant))
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "invalid_tenant")


def forged(issuer: Issuer) -> Iterator[tuple[str, str]]:
    """Tokens that the issuer never signed, or not for this server, or not for now; by name."""
    now, claims = int(time.time()), issuer.claims()
    public = private_key("RS256-one").public_key()
    for name, secret in {
        "PEM": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "DER": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "JWK": json.dumps(public_jwk("RS256-one")).encode(),
        "empty": b"",
    }.items():
        header = {"alg": "HS256", "typ": "JWT", "kid": "RS256-one"}
        yield f"HS256 with {name}", unsigned(header, claims, lambda text, key=secret: _hmac(key, text))  # type: ignore[misc]
    for alg in (
        "none",
        "None",
        "NONE",
        "nOnE",
        "",
        None,
        5,
        ["RS256"],
        {"RS256": 1},
        "RS512",
        "ES256",
        "PS256",
        "HS256",
    ):
        yield f"alg {alg}", unsigned({"alg": alg, "kid": "RS256-one"}, claims)
        yield f"alg {alg}, no signature", unsigned({"alg": alg, "kid": "RS256-one"}, claims, lambda _: b"")
    good = issuer.token()
    head, body, signature = good.split(".")
    other = encoded({**claims, "scope": "tunery:admin"})
    yield "other claims", f"{head}.{other}.{signature}"
    yield "another header", f"{encoded({'alg': 'RS256', 'kid': 'RS256-one', 'a': 1})}.{body}.{signature}"
    yield "cut signature", good[:-2]
    yield "one more part", good + "."
    yield "five parts", f"{good}.{body}.{signature}"
    yield "empty parts", ".."
    yield "padded", good + "=="
    yield "with a space", good.replace(".", ". ", 1)
    yield "another key", issuer.token("RS256-other", header={"kid": "RS256-one"})
    yield "another key's id", issuer.token("RS256-other")
    yield "an encryption key's id", issuer.token(header={"kid": "RS256-one\x00"})
    yield (
        "own key in the header",
        issuer.token("RS256-other", header={"kid": "RS256-one", "jwk": public_jwk("RS256-other")}),
    )
    yield "an unknown critical extension", issuer.token(header={"crit": ["exp"], "exp": 1})
    yield "a detached payload", unsigned({"alg": "RS256", "kid": "RS256-one", "b64": False, "crit": ["b64"]}, claims)
    yield "a token for logging out", issuer.token(header={"typ": "logout+jwt"})
    yield "wrong issuer", issuer.token(iss=issuer.url + "/")
    yield "no issuer", issuer.token(iss=None)
    yield "wrong audience", issuer.token(aud="https://other.test")
    yield "wrong audiences", issuer.token(aud=["https://other.test", "https://tunery.test/"])
    yield "no audience", issuer.token(aud=None)
    yield "an object as audience", issuer.token(aud={"https://tunery.test": 1})
    yield "no subject", issuer.token(sub=None)
    yield "a number as subject", issuer.token(sub=5)
    yield "not yet valid", issuer.token(nbf=now + 600)
    yield "issued in the future", issuer.token(iat=now + 600)
    yield "no end", issuer.token(exp=None)
    yield "an end that is no number", issuer.token(exp="never")
    yield "an endless end", issuer.token(exp=float("inf"))
    yield "a list as claims", unsigned({"alg": "RS256", "kid": "RS256-one"}, [claims], _rs256)
    yield "deep claims", unsigned({"alg": "RS256", "kid": "RS256-one"}, b"[" * 4000, _rs256)
    yield "a deep header", unsigned(b"[" * 1400, claims)
    yield "a header with a deep value", unsigned(b'{"alg": "RS256", "kid": "RS256-one", "x": ' + b"[" * 1400, claims)
    yield "half a surrogate pair", unsigned(b'{"alg": "RS256", "kid": "\\ud800"}', claims)
    yield "a huge number", unsigned(b'{"alg": "RS256", "kid": "RS256-one", "x": ' + b"9" * 1400 + b"}", claims)


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).digest()


def _rs256(text: bytes) -> bytes:
    from jwt.algorithms import RSAAlgorithm

    return RSAAlgorithm(RSAAlgorithm.SHA256).sign(text, private_key("RS256-one"))


async def test_forged_tokens_are_refused_alike(http: httpx.AsyncClient, issuer: Issuer) -> None:
    assert (await ask(http, issuer.token())).status_code == 200
    messages = set()
    for name, token in forged(issuer):
        answer = await ask(http, token)
        assert answer.status_code == 401, (name, answer.text)
        assert answer.json()["error"]["code"] == "invalid_api_key", name
        messages.add(answer.json()["error"]["message"])
    assert len(messages) <= 2, "one for what looks like a token, and that of keys"
    assert (await ask(http, issuer.token())).status_code == 200
    # Two documents at the start; two more for the first key that is not known.
    assert len(issuer.asked) == 4


async def test_a_token_ends(http: httpx.AsyncClient, issuer: Issuer) -> None:
    now = int(time.time())
    answer = await ask(http, issuer.token(exp=now - 6))
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_expired")
    short = issuer.token(exp=now - 3)
    assert (await ask(http, short)).status_code in (200, 401), "within the leeway, unless this machine is slow"
    deadline = time.monotonic() + 60
    while (await ask(http, short)).status_code != 401:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_keys_that_a_header_links_to_are_not_fetched(http: httpx.AsyncClient, issuer: Issuer) -> None:
    with issuing() as thief:
        thief.keys = ["RS256-other"]
        link = thief.url + JWKS
        header: dict[str, Any] = {"jku": link, "x5u": link, "x5c": ["AAAA"], "jwk": public_jwk("RS256-other")}
        assert (await ask(http, issuer.token("RS256-other", header=header))).status_code == 401
        assert (await ask(http, issuer.token("RS256-other", header={**header, "kid": link}))).status_code == 401
        assert thief.asked == []
        assert (await ask(http, issuer.token(header={"jku": link, "x5u": link}))).status_code == 200
        assert thief.asked == []


async def test_a_flood_of_unknown_keys_is_one_look(http: httpx.AsyncClient, issuer: Issuer) -> None:
    assert (await ask(http, issuer.token())).status_code == 200
    tokens = [unsigned({"alg": "RS256", "kid": f"k{number}"}, {}) for number in range(100)]
    answers = await asyncio.gather(*(ask(http, token) for token in tokens))
    assert {answer.status_code for answer in answers} == {401}
    assert issuer.asked.count(JWKS) == 2
    assert (await ask(http, issuer.token())).status_code == 200


async def test_keys_are_rotated_and_withdrawn(http: httpx.AsyncClient, issuer: Issuer) -> None:
    old = issuer.token()
    assert (await ask(http, old)).status_code == 200
    issuer.keys = ["RS256-two"]
    assert (await ask(http, old)).status_code == 200, "nobody has said so yet"
    assert (await ask(http, issuer.token("RS256-two"))).status_code == 200
    assert (await ask(http, old)).status_code == 401, "verified before, with a key that was withdrawn"


async def test_huge_tokens_are_not_looked_at(http: httpx.AsyncClient, issuer: Issuer) -> None:
    assert (await ask(http, issuer.token(padding="x" * 4000))).status_code == 200
    assert (await ask(http, issuer.token(padding="x" * 8000))).status_code == 401
    assert (await ask(http, issuer.token(header={"padding": "x" * 4000}))).status_code == 401
    assert (await ask(http, issuer.token(header={"kid": "k" * 1000}))).status_code == 401
    assert issuer.asked.count(JWKS) == 1
    assert (await ask(http, "x" * 2**20 + ".y.z")).status_code in (400, 401, 431)


async def test_an_issuer_that_fails_stops_no_known_key(http: httpx.AsyncClient, issuer: Issuer) -> None:
    known = issuer.token()
    assert (await ask(http, known)).status_code == 200
    issuer.answers[JWKS] = lambda handler: reply(handler, 500)
    assert (await ask(http, issuer.token("RS256-two"))).status_code == 401
    assert (await ask(http, issuer.token(sub="bob"))).status_code == 200
    issuer.answers[JWKS] = lambda handler: reply(handler, 200, b'{"keys": []}')
    assert (await ask(http, known)).status_code == 200


class TestIssuerDownAtTheStart:
    @pytest.fixture
    def issuer(self) -> Iterator[Issuer]:
        with issuing() as issuer:
            issuer.answers[JWKS] = lambda handler: reply(handler, 503)
            yield issuer

    async def test_keys_are_good_and_tokens_soon(self, served: Served, http: httpx.AsyncClient, issuer: Issuer) -> None:
        _, key = served.gateway.registry.keys.create(tenant="acme", scopes=SCOPES, actor="test")
        assert (await ask(http, key)).status_code == 200
        answer = await ask(http, issuer.token())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "issuer_unreachable")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await http.get("/health/ready")).status_code == 200
        del issuer.answers[JWKS]
        deadline = time.monotonic() + 60
        while (await ask(http, issuer.token())).status_code != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


class TestWithoutAnIssuer:
    @pytest.fixture
    def oidc(self) -> OidcSettings:
        return OidcSettings()

    async def test_no_token_is_good(self, http: httpx.AsyncClient, issuer: Issuer) -> None:
        answer = await ask(http, issuer.token())
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert issuer.asked == []
