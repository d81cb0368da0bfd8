"""A server on loopback that receives webhooks, answers what a test says, and may do so slowly or endlessly."""

from __future__ import annotations

import secrets
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openai import OpenAI

from tunery.registry.configuration.webhooks import EVENT_TYPES, WebhookEndpoint, WebhooksSettings

LOOPBACK = "127.0.0.1"


def new_secret() -> str:
    return f"whsec_{b64encode(secrets.token_bytes(24)).decode()}"


@dataclass
class Reply:
    """What to answer; `seconds` is how long to wait first."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    seconds: float = 0.0


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What came, oldest first. `replies` are the next answers; then it is 200."""

    port: int
    secret: str = field(default_factory=new_secret)
    scheme: str = "http"
    replies: list[Reply] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)

    def url(self, path: str = "/hook") -> str:
        return f"{self.scheme}://{LOOPBACK}:{self.port}{path}"

    def endpoint(self, *, events: tuple[str, ...] = EVENT_TYPES, path: str = "/hook") -> WebhookEndpoint:
        return WebhookEndpoint(url=self.url(path), secret=self.secret, events=events)

    def settings(self) -> WebhooksSettings:
        return WebhooksSettings(allow=(LOOPBACK,), endpoints=(self.endpoint(),))

    def config(self) -> str:
        """config.toml that sends everything here."""
        return f'[webhooks]\nallow = ["{LOOPBACK}"]\n[[webhooks.endpoints]]\nurl = "{self.url()}"\nsecret = "{self.secret}"\n'

    def wait(self, count: int, seconds: float = 240) -> list[Received]:
        """The first so many requests."""
        until(lambda: len(self.received) >= count, seconds)
        return self.received[:count]

    def unwrap(self, request: Received) -> Any:
        """The event, verified and typed by OpenAI's client."""
        with OpenAI(api_key="unused") as client:
            return client.webhooks.unwrap(request.body, request.headers, secret=self.secret)


def until(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def receiving(context: ssl.SSLContext | None = None, *, port: int = 0) -> Iterator[Receiver]:
    """Receive on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            reply = receiver.replies.pop(0) if receiver.replies else Reply()
            receiver.received.append(Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            stopped.wait(reply.seconds)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that leave early are part of the tests."""

    stopped = threading.Event()
    server = Server((LOOPBACK, port), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    receiver = Receiver(server.server_address[1], scheme="https" if context else "http")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
