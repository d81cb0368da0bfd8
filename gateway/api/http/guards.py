"""Checks each request before its body is parsed: its head must have one meaning, its Host and Origin must be allowed, its
body JSON in UTF-8.

A web page from elsewhere can send requests to a server on loopback through a browser, under a host name whose address
it changes (DNS rebinding), or with a content type that browsers send without a preflight request. `Guard` refuses both. A head with two meanings, which a proxy may have understood in the other one, is refused as well.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from litestar import Request
from litestar.exceptions import InternalServerException

from tunery.gateway.api.http.body_shape import check_shape
from tunery.gateway.api.http.errors import Refused
from tunery.registry.configuration.settings import ServeSettings

__all__ = ["Guard"]

_GZIP = b"\x1f\x8b"
_WITH_BODY = ("POST", "PUT", "PATCH")
_ONCE = (
    *(b"host", b"authorization", b"origin", b"content-type", b"content-encoding", b"transfer-encoding"),
    *(b"idempotency-key", b"x-tunery-adapter"),
)
"""Headers that decide something: of two, a proxy in front may have checked the other one."""


class Guard:
    """The checks of one application, for Litestar's `before_request`: its route guards do not get the body. What a
    request comes from is checked before who sends it, and its body after that."""

    def __init__(self, settings: ServeSettings) -> None:
        self._hosts = tuple(name.lower() for name in settings.allowed_hosts)
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.allowed_origins)
        self._any_host = not self._hosts and not _is_loopback(settings.host)

    def check_source(self, request: Request[Any, Any, Any]) -> None:
        """Raise Refused: 400 for a head that can be read in two ways, 403 for a host or origin that is not allowed."""
        _check_head(request.scope["headers"])
        host = request.headers.get("host")
        self._check_host(host)
        self._check_origin(request.headers.get("origin"), host)

    @staticmethod
    async def check_body(request: Request[Any, Any, Any]) -> None:
        """Raise Refused: 415 for the body's content type, 400 for a body that is not text. Raise InvalidInput for one of
        too many values."""
        if request.method not in _WITH_BODY:
            return
        if request.route_handler.opt.get("streamed_body"):
            _check_multipart(request)
        elif not request.route_handler.opt.get("no_body"):
            _check_type(request)
            body = await _body(request)
            _check_text(body)
            check_shape(body)

    def _check_host(self, host: str | None) -> None:
        """Browsers always send a Host header, so a request without one does not come from a page."""
        if not host or self._any_host:
            return
        name = _hostname(host)
        if not (_is_loopback(name) or any(fnmatchcase(name, allowed) for allowed in self._hosts)):
            raise Refused(
                f"the host {host[:100]!r} is not allowed on this server; add it to serve.allowed_hosts",
                status=403,
                code="host_not_allowed",
            )

    def _check_origin(self, origin: str | None, host: str | None) -> None:
        if origin is None or "*" in self._origins or origin.lower() in self._origins:
            return
        scheme, _, netloc = origin.lower().partition("://")
        if scheme not in ("http", "https") or netloc != (host or "").lower():
            raise Refused(
                f"the origin {origin[:100]!r} is not allowed on this server; add it to serve.allowed_origins",
                status=403,
                code="origin_not_allowed",
            )


def _check_head(headers: Iterable[tuple[bytes, bytes]]) -> None:
    names = [name for name, _ in headers]
    for name in _ONCE:
        if names.count(name) > 1:
            text = f"the header {name.decode()} is there twice; send it once"
            raise Refused(text, status=400, code="invalid_header", close=True)
    # Chunks with a content-length beside them end the connection in the server itself.
    if dict(headers).get(b"transfer-encoding", b"chunked").strip().lower() != b"chunked":
        raise Refused(
            "the body's transfer-encoding is not chunked; send it as it is, with content-length or in chunks",
            status=400,
            code="invalid_header",
            close=True,
        )


def _hostname(host: str) -> str:
    """The name in a Host header: without its port, brackets and final dot, in lower case."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _check_type(request: Request[Any, Any, Any]) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Refused(
            f"the body's content-type is {kind[:100] or 'missing'}; send JSON as application/json",
            status=415,
            code="unsupported_media_type",
        )
    _check_encoding(request)


def _check_encoding(request: Request[Any, Any, Any]) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refused(
            f"the body is compressed ({encoding[:100]}); send it uncompressed, without content-encoding",
            status=415,
            code="unsupported_media_type",
        )


def _check_multipart(request: Request[Any, Any, Any]) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refused(
            f"the body's content-type is {kind[:100] or 'missing'}; send the file as multipart/form-data",
            status=415,
            code="unsupported_media_type",
        )
    _check_encoding(request)


async def _body(request: Request[Any, Any, Any]) -> bytes:
    """The whole body. A body with a content-length can end early only if the client disconnects."""
    try:
        return await request.body()
    except InternalServerException as error:
        if "content-length" in request.headers:
            raise Refused(
                "the client disconnected before its request was complete", status=499, code="cancelled"
            ) from error
        raise _invalid("the body ended early, or its chunks are not framed as HTTP requires; send it again") from error


def _check_text(body: bytes) -> None:
    if not body:
        raise _invalid("the body is empty; send a JSON object")
    if body.startswith(codecs.BOM_UTF8):
        raise _invalid("the body begins with a byte order mark; send UTF-8 without one")
    if body.startswith(_GZIP):
        raise _invalid("the body is compressed with gzip; send it uncompressed")
    try:
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"the body is not UTF-8 (byte {error.start}); encode it as UTF-8") from error


def _invalid(message: str) -> Refused:
    return Refused(message, status=400, code="invalid_json")
