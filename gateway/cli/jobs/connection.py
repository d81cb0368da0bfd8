"""HTTP to a server's `/v1`: the key, and errors of the server as those of the command line. The key is never shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
import msgspec

from tunery.gateway.cli.terminal.text import visible
from tunery.registry.errors import (
    ArtifactRefused,
    Conflict,
    InvalidInput,
    NotFound,
    Overloaded,
    StorageFailed,
    TuneryError,
    Unavailable,
)

__all__ = ["Connection", "error_of"]

T = TypeVar("T")

TIMEOUT = httpx2.Timeout(60.0, connect=10.0, read=300.0)
CONFLICTS = frozenset({"conflict", "idempotency_key_reused", "job_ended", "job_finishing", "not_paused"})
"""Codes of conflicts, which HTTP's status does not tell apart: see `gateway.api.http.errors`."""
STATUSES: Mapping[int, type[TuneryError]] = {
    404: NotFound,
    409: Conflict,
    422: ArtifactRefused,
    429: Overloaded,
    503: Unavailable,
}
_KEY = re.compile(r"[\x21-\x7e]*")


class Connection:
    """A connection to one server; its errors are raised as they would be without a server in between."""

    def __init__(self, url: str, *, key: str | None) -> None:
        self.url = _root(url)
        if key is not None and not _KEY.fullmatch(key):
            raise InvalidInput("the key has spaces, or characters that no key has", code="invalid_key", param="key")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx2.Client(base_url=f"{self.url}/v1/", headers=headers, timeout=TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def call(self, method: str, path: str, kind: type[T], **options: Any) -> T:
        """What the server answers; raises the error that it answers, Unavailable or InvalidInput."""
        try:
            response = self.http.request(method, path, **options)
        except httpx2.HTTPError as error:
            raise self.unreachable(error) from error
        if not response.is_success:
            raise self.error(response)
        return self.decode(response.content, kind)

    def decode(self, content: bytes | str, kind: type[T]) -> T:
        """JSON from the server; raises InvalidInput where it is not what Tunery answers."""
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.DecodeError as error:
            raise self.foreign(error) from error

    def foreign(self, error: Exception) -> InvalidInput:
        """The error for a server that is none of Tunery's."""
        return InvalidInput(f"{self.url} does not answer as Tunery does ({error}); check --server", param="server")

    def unreachable(self, error: Exception) -> Unavailable:
        """The error for a server that does not answer."""
        return Unavailable(
            f"{self.url} does not answer ({error or type(error).__name__}): start it with tunery serve, or name another "
            "one with --server"
        )

    def error(self, response: httpx2.Response) -> TuneryError:
        """The error in a response whose body was read."""
        return error_of(response.status_code, response.content, url=self.url)


def error_of(status: int, content: bytes, *, url: str) -> TuneryError:
    """An error in OpenAI's envelope as one of ours."""
    try:
        body = msgspec.json.decode(content, type=dict[str, dict[str, Any]])["error"]
        message = visible(str(body["message"]))
    except (msgspec.DecodeError, KeyError):
        return Unavailable(f"{url} answers with HTTP {status}, and not as Tunery does; check --server")
    code, param = body.get("code"), body.get("param")
    return _kind(status, code)(message, code=code, param=param)


def _kind(status: int, code: str | None) -> type[TuneryError]:
    if status >= 500 and status != 503:
        return Unavailable if code in (None, "internal_error") else StorageFailed
    return Conflict if code in CONFLICTS else STATUSES.get(status, InvalidInput)


def _root(url: str) -> str:
    """The server's URL without /v1, which OpenAI's clients want there and may be given here too."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InvalidInput(f"--server is not a URL such as http://127.0.0.1:8000: {error}", param="server") from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or parsed.query or parsed.fragment:
        raise InvalidInput(
            "--server is a URL such as http://127.0.0.1:8000, without a user name or a query", param="server"
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
