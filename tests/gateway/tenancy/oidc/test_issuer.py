"""Asking an issuer for its keys over HTTP, and what it may answer."""

from __future__ import annotations

import datetime
import gzip
import ipaddress
import json
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.gateway.tenancy.oidc.issuer import DISCOVERY, JWKS, Issuer, issuing, private_key, reply
from tunery.gateway.tenancy.oidc import issuer as module
from tunery.gateway.tenancy.oidc.issuer import Issuer as Client
from tunery.gateway.tenancy.oidc.key_set import KeySet
from tunery.registry.configuration.oidc import OidcSettings
from tunery.registry.errors import InvalidInput, Unavailable


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as issuer:
        yield issuer


@asynccontextmanager
async def client_of(settings: OidcSettings) -> AsyncIterator[Client]:
    client = Client(settings)
    yield client
    await client.close()


async def fetch(settings: OidcSettings) -> KeySet:
    async with client_of(settings) as client:
        return await client.fetch_keys()


async def test_the_discovery_document_says_where_the_keys_are(issuer: Issuer) -> None:
    keys = await fetch(issuer.settings())
    assert keys.find("RS256-one", "RS256") is not None
    assert issuer.asked == [DISCOVERY, JWKS]


async def test_with_a_jwks_uri_nothing_is_discovered(issuer: Issuer) -> None:
    assert (await fetch(issuer.settings(jwks_uri=issuer.url + JWKS))).digests
    assert issuer.asked == [JWKS]


@pytest.mark.parametrize("path", [DISCOVERY, JWKS])
async def test_a_redirect_is_not_followed(issuer: Issuer, path: str) -> None:
    with issuing() as other:
        issuer.answers[path] = lambda handler: reply(handler, 302, location=other.url + path)
        with pytest.raises(Unavailable, match="HTTP 302: redirects are not followed"):
            await fetch(issuer.settings())
        assert other.asked == []


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "discovery document cannot be used"),
        ({"issuer": "http://127.0.0.1:1", "jwks_uri": "http://127.0.0.1:1/keys"}, "of another issuer"),
        ({"jwks_uri": "file:///etc/passwd"}, "is not a URL"),
        ({"jwks_uri": "ftp://127.0.0.1/keys"}, "must begin with https://"),
        ({"jwks_uri": "http://169.254.169.254/latest"}, "must begin with https://"),
        ({"jwks_uri": "http://user:pw@127.0.0.1/keys"}, "has a user name"),
        ({"jwks_uri": 5}, "discovery document cannot be used"),
        ([[]], "discovery document cannot be used"),
    ],
)
async def test_a_wrong_discovery_document(issuer: Issuer, document: Any, message: str) -> None:
    if isinstance(document, dict) and document:
        document = {"issuer": issuer.url, **document}
    issuer.answers[DISCOVERY] = lambda handler: reply(handler, 200, json.dumps(document).encode())
    with pytest.raises(Unavailable, match=message):
        await fetch(issuer.settings())
    assert issuer.asked == [DISCOVERY]


async def test_a_huge_document_is_not_read_to_its_end(issuer: Issuer) -> None:
    ended = threading.Event()

    def huge(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(4096):
                handler.wfile.write(b" " * 2**16)
        except OSError:
            ended.set()

    issuer.answers[JWKS] = huge
    with pytest.raises(Unavailable, match="more than 256 KiB"):
        await fetch(issuer.settings())
    assert ended.wait(60)


async def test_a_compressed_document_is_not_expanded(issuer: Issuer) -> None:
    bomb = gzip.compress(b" " * 2**24)
    issuer.answers[JWKS] = lambda handler: reply(handler, 200, bomb, **{"content-encoding": "gzip"})
    with pytest.raises(Unavailable, match="key set cannot be used"):
        await fetch(issuer.settings())


async def test_a_slow_document_is_waited_for_only_so_long(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FETCH_SECONDS", 0.3)
    stop = threading.Event()

    def slow(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not stop.wait(0.05):
            handler.wfile.write(b" ")

    issuer.answers[JWKS] = slow
    with pytest.raises(Unavailable, match=r"did not answer within 0\.3 s"):
        await fetch(issuer.settings())
    stop.set()


async def test_statuses_and_closed_ports(issuer: Issuer) -> None:
    issuer.answers[JWKS] = lambda handler: reply(handler, 500)
    with pytest.raises(Unavailable, match=f"{JWKS} answers with HTTP 500"):
        await fetch(issuer.settings())
    with pytest.raises(Unavailable, match="ConnectError"):
        await fetch(issuer.settings(jwks_uri="http://127.0.0.1:1/keys"))


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1, and what a server needs to use it."""
    key, name = private_key("ES256-tls"), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file, key_file = folder / "ca.pem", folder / "key.pem"
    file.write_bytes(made.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return file, context


async def test_a_private_authority_is_trusted_where_it_is_configured(tmp_path: Path) -> None:
    file, context = certificate(tmp_path)
    with issuing(context=context) as issuer:
        assert (await fetch(issuer.settings(ca_file=str(file)))).digests
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await fetch(issuer.settings())


@pytest.mark.parametrize("text", [None, "", "no certificate"])
def test_a_file_without_certificates_is_said_at_the_start(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidInput, match=r"oidc\.ca_file: .*ca\.pem"):
        Client(OidcSettings(issuer="https://a.test", ca_file=str(file)))
