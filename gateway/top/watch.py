"""Ask a server again and again, and go on asking one that does not answer."""

from __future__ import annotations

import re
import time
from collections import deque
from types import TracebackType
from typing import Self

import httpx2
import msgspec

from tunery.gateway.api.schemas.models import AdapterCard, AdapterList
from tunery.gateway.top.exposition import Exposition, read_exposition
from tunery.gateway.top.overview import Overview, overview
from tunery.registry.errors import InvalidInput, Unavailable

__all__ = ["Watch"]

WINDOW = 30.0
"""Seconds that rates and quantiles are of."""
_TIMEOUT = httpx2.Timeout(10.0, connect=5.0)
_MOST_BYTES = 64 * 2**20
_KEY = re.compile(r"[\x21-\x7e]*")


class Watch:
    """One server; `most` is how many adapters and tenants to show. Close it, or use it in a `with` block."""

    def __init__(self, url: str, *, key: str | None, most: int = 10) -> None:
        self.url, self._most = _root(url), most
        if key is not None and not _KEY.fullmatch(key):
            raise InvalidInput("the key has spaces, or characters that no key has", code="invalid_key", param="key")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT)
        self._seen: deque[Exposition] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def look(self) -> Overview | None:
        """What the server did since it was first looked at, at most WINDOW ago; None at the first look.

        Raises Unavailable where it does not answer now, and InvalidInput where it never will: a wrong key or URL.
        """
        latest = read_metrics(self._get("/metrics"), url=self.url)
        while len(self._seen) > 1 and self._seen[1].at <= latest.at - WINDOW:
            self._seen.popleft()
        self._seen.append(latest)
        if len(self._seen) == 1:
            return None
        return overview(self.url, latest, self._seen[0], self._cards(), most=self._most)

    def forget(self) -> None:
        """Begin again, after a time without answers."""
        self._seen.clear()

    def _cards(self) -> list[AdapterCard]:
        """The adapters, where the key may list them."""
        try:
            return msgspec.json.decode(self._get("/v1/adapters"), type=AdapterList).data
        except (InvalidInput, msgspec.MsgspecError):
            return []

    def _get(self, path: str) -> bytes:
        try:
            response = self._http.get(path)
        except httpx2.HTTPError as error:
            raise Unavailable(f"{self.url} does not answer ({error or type(error).__name__})") from error
        if response.status_code in (401, 403):
            raise InvalidInput(
                f"{self.url} wants a key with the scope admin: give it with --key or TUNERY_API_KEY", param="key"
            )
        if response.status_code >= 500:
            raise Unavailable(f"{self.url} answers with HTTP {response.status_code}")
        if not response.is_success or len(response.content) > _MOST_BYTES:
            raise _foreign(self.url, f"HTTP {response.status_code} for {path}")
        return response.content


def read_metrics(content: bytes, *, url: str) -> Exposition:
    """The metrics of a server of Tunery; raises InvalidInput for any other."""
    try:
        found = read_exposition(content.decode(), at=time.monotonic())
    except ValueError as error:
        raise _foreign(url, "no metrics that can be read") from error
    if "tunery_engine_up" not in found.samples:
        raise _foreign(url, "other metrics")
    return found


def _foreign(url: str, what: str) -> InvalidInput:
    return InvalidInput(f"{url} does not answer as Tunery does ({what}); check --server", param="server")


def _root(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InvalidInput(f"--server is not a URL such as http://127.0.0.1:8000: {error}", param="server") from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise InvalidInput("--server is a URL such as http://127.0.0.1:8000, without a user name", param="server")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
