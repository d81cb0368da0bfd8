"""TLS with real certificates and clients: who is served, and how certificates are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import httpx2
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from openai import AsyncOpenAI

from tests.registry.artifacts import make_base
from tunery.gateway import http_server
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.fake import FakeEngine
from tunery.gateway.gateway_process import serve
from tunery.gateway.metrics.recorder import Metrics
from tunery.gateway.resolver import Resolver
from tunery.gateway.tls import TlsFiles, check_tls, tls_files
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import InvalidInput
from tunery.registry.registry import Registry


@dataclass
class Files:
    """A server's PEM files, and who signs them."""

    folder: Path
    servers: trustme.CA
    clients: trustme.CA

    @property
    def tls(self) -> TlsFiles:
        return TlsFiles(self.folder / "cert.pem", self.folder / "key.pem", self.folder / "clients.pem")

    def write(self) -> None:
        """Issue a new certificate, and write everything as certbot does: beside it, and then in its place."""
        issued = self.servers.issue_cert("127.0.0.1", "localhost")
        self._replace("cert.pem", b"".join(part.bytes() for part in issued.cert_chain_pems))
        self._replace("key.pem", issued.private_key_pem.bytes())
        self._replace("clients.pem", self.clients.cert_pem.bytes())

    def _replace(self, name: str, content: bytes) -> None:
        (self.folder / "new").write_bytes(content)
        (self.folder / "new").rename(self.folder / name)

    def client_context(self, *, known: bool = True) -> ssl.SSLContext:
        """What a client trusts, and shows if it is `known`."""
        context = ssl.create_default_context(cadata=self.servers.cert_pem.bytes().decode())
        if known:
            self.clients.issue_cert("client@example.com").configure_cert(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "tls"
    folder.mkdir()
    files = Files(folder, trustme.CA(), trustme.CA())
    files.write()
    return files


@dataclass
class Local:
    """A gateway in this process that serves by TLS."""

    engine: FakeEngine
    url: str


@pytest.fixture
async def local(
    registry: Registry, tiny_base_folder: Path, tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Local]:
    monkeypatch.setattr(http_server, "TLS_POLL", 0.1)
    base = registry.add_base(make_base(tmp_path / "base"))
    settings = ServeSettings(
        base="tiny",
        auth=False,
        port=0,
        tls_cert=str(files.tls.cert),
        tls_key=str(files.tls.key),
        tls_client_ca=str(files.tls.client_ca),
    )
    engine = FakeEngine([70] * 500, base_digest=base.digest)
    gateway = Gateway(settings, registry, engine, Renderer(tiny_base_folder), Resolver(registry, base), Metrics())
    said: asyncio.Queue[str] = asyncio.Queue()
    serving = asyncio.create_task(serve(gateway, say=said.put_nowait))
    url = (await asyncio.wait_for(said.get(), 60)).split()[1]
    assert url.startswith("https://127.0.0.1:")
    yield Local(engine, url)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(serving, 60)


@contextlib.asynccontextmanager
async def openai_client(local: Local, context: ssl.SSLContext) -> AsyncIterator[AsyncOpenAI]:
    http = httpx2.AsyncClient(verify=context, timeout=60)
    async with AsyncOpenAI(base_url=f"{local.url}/v1", api_key="unused", max_retries=0, http_client=http) as client:
        yield client


async def answers(local: Local, context: ssl.SSLContext) -> bool:
    """Whether a client is served."""
    with contextlib.suppress(httpx.TransportError, ssl.SSLError):
        async with httpx.AsyncClient(verify=context) as client:
            response = await client.get(f"{local.url}/health/live")
            assert response.headers["strict-transport-security"] == "max-age=31536000"
            return True
    return False


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.05)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
async def test_only_clients_with_a_certificate_are_served(local: Local, files: Files) -> None:
    async with openai_client(local, files.client_context()) as client:
        answer = await client.completions.create(model="tiny", prompt="x", max_tokens=3)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
    assert not await answers(local, files.client_context(known=False))
    strangers = Files(files.folder, files.servers, trustme.CA())
    assert not await answers(local, strangers.client_context())
    old, new = files.client_context(), files.client_context()
    old.maximum_version = new.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await answers(local, new)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    assert not await answers(local, old)
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.TransportError):
            await client.get(local.url.replace("https", "http"))
    assert await answers(local, files.client_context())


async def test_new_certificates_are_served_and_streams_go_on(
    local: Local, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tunery.gateway")
    before = files.client_context()
    local.engine.delay = 0.05
    async with openai_client(local, before) as client:
        stream = await client.completions.create(
            model="tiny", prompt="x", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
        )
        texts = [(await anext(stream)).choices[0].text]

        files.servers, files.clients = trustme.CA(), trustme.CA()
        files.write()
        await until(lambda: "the new certificate is served" in caplog.text)
        assert await answers(local, files.client_context())
        assert not await answers(local, before)

        files.tls.key.write_text("no key")
        await until(lambda: "is not served, the old one is" in caplog.text)
        assert str(files.tls.key) in caplog.text
        assert await answers(local, files.client_context())

        local.engine.delay = 0.0
        texts += [chunk.choices[0].text async for chunk in stream]
    assert len("".join(texts)) == 400
    assert [record.levelname for record in caplog.records if "certificate" in record.message] == ["INFO", "WARNING"]


def _pem(key: ec.EllipticCurvePrivateKey, encryption: BestAvailableEncryption | NoEncryption) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cert.pem", None, "cert.pem cannot be read \\(No such file"),
        ("cert.pem", b"", "are no certificate with its key"),
        ("key.pem", _pem(ec.generate_private_key(ec.SECP256R1()), NoEncryption()), "are no certificate with its"),
        (
            "key.pem",
            _pem(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"x")),
            "the key is encrypted; give one without a password",
        ),
        ("clients.pem", b"", "clients.pem has no certificates of authorities"),
    ],
    ids=["missing", "empty", "another key", "encrypted", "no authorities"],
)
def test_bad_files_are_one_error(files: Files, name: str, content: bytes | None, message: str) -> None:
    path = files.folder / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as caught:
        check_tls(files.tls)
    assert caught.value.code == "invalid_tls"
    assert "set serve.tls_cert" in caught.value.message


def test_a_certificate_that_only_openssl_can_use_is_refused_and_ends_no_server(files: Files) -> None:
    key, name = ec.generate_private_key(ec.SECP521R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
        .sign(key, SHA256())
    )
    files.tls.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    files.tls.key.write_bytes(_pem(key, NoEncryption()))
    with pytest.raises(InvalidInput, match=r"the server cannot use .*failed to parse private key"):
        check_tls(files.tls)


def test_half_of_the_settings_is_an_error() -> None:
    assert tls_files(ServeSettings()) is None
    for settings in (ServeSettings(tls_cert="a"), ServeSettings(tls_key="a"), ServeSettings(tls_client_ca="a")):
        with pytest.raises(InvalidInput, match=r"both serve\.tls_cert and serve\.tls_key"):
            tls_files(settings)
