"""An OpenID Connect issuer on loopback, with keys of its own, which answers what a test says."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tunery.registry.configuration.oidc import OidcSettings

AUDIENCE = "https://tunery.test"
DISCOVERY = "/.well-known/openid-configuration"
JWKS = "/keys"

Answer = Callable[[BaseHTTPRequestHandler], None]


_making = threading.Lock()


def private_key(name: str) -> Any:
    """A key for the algorithm that its name begins with; they take a while to make, and the issuer's thread and the test
    must not make one each."""
    with _making:
        return _private_key(name)


@cache
def _private_key(name: str) -> Any:
    if name.startswith(("RS", "PS")):
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1()) if name.startswith("ES256") else ed25519.Ed25519PrivateKey.generate()


def public_jwk(name: str, **more: object) -> dict[str, Any]:
    """The public half of a key as a JSON web key."""
    kind: Any = {"RS": RSAAlgorithm, "PS": RSAAlgorithm, "ES": ECAlgorithm, "Ed": OKPAlgorithm}[name[:2]]
    return {**kind.to_jwk(private_key(name).public_key(), as_dict=True), "kid": name, "use": "sig", **more}


@dataclass
class Issuer:
    """What it publishes, and which paths it was asked for. `answers` replace what it says at a path."""

    url: str
    keys: list[str] = field(default_factory=lambda: ["RS256-one"])
    asked: list[str] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)

    def settings(self, **more: Any) -> OidcSettings:
        return OidcSettings(**{"issuer": self.url, "audience": (AUDIENCE,), **more})

    def claims(self, **more: object) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "alice", "iat": now, "nbf": now, "exp": now + 600}
        claims |= {"tenant": "acme", "scope": "openid tunery:infer", **more}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, key: str = "RS256-one", *, header: dict[str, Any] | None = None, **claims: object) -> str:
        """A token signed with a key; a claim of None is left out."""
        algorithm = key.partition("-")[0]
        return jwt.encode(self.claims(**claims), private_key(key), algorithm, headers={"kid": key, **(header or {})})

    def document(self, path: str) -> dict[str, Any] | None:
        if path == DISCOVERY:
            return {"issuer": self.url, "jwks_uri": self.url + JWKS}
        return {"keys": [public_jwk(name) for name in self.keys]} if path == JWKS else None


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Answer a request."""
    handler.send_response(status)
    for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def issuing(*, context: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Issuer]:
    """Run an issuer; with a `context` it speaks TLS."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            if self.path in issuer.answers:
                issuer.answers[self.path](self)
            else:
                document = issuer.document(self.path)
                reply(self, 404 if document is None else 200, json.dumps(document).encode())

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that leave early are part of the tests."""

    server = Server(("127.0.0.1", port), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    issuer = Issuer(f"{'https' if context else 'http'}://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
