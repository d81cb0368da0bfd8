"""The headers that every response has, whatever answers: the request's ids, the gateway's share of the time, and what
keeps browsers and caches from doing what they should not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from tunery.gateway.api.http.trace import Trace

__all__ = ["ResponseHeaders"]

Headers = list[tuple[bytes, bytes]]

_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_PAGES = (
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
)
"""Of HTML: no script runs, nothing is loaded, and no other page shows it in a frame."""
_PRIVATE = (b"cache-control", b"no-store")
"""Answers are a tenant's own; what may be cached says so itself."""
_HTTPS_ONLY = (b"strict-transport-security", b"max-age=31536000")


class ResponseHeaders:
    """Adds the headers; none that a response sets is replaced.

    `tls` says that clients reach this server by HTTPS. While it is `leaving`, every connection is closed after its
    response, so that proxies which keep connections open find another server.
    """

    def __init__(self, *, tls: bool, leaving: Callable[[], bool] = lambda: False) -> None:
        self._always = (*_ALWAYS, _HTTPS_ONLY) if tls else _ALWAYS
        self._leaving = leaving

    def add(self, headers: Iterable[tuple[bytes, bytes]], trace: Trace) -> Headers:
        """The headers of a response that starts now."""
        complete = list(headers)
        kind = next((value for name, value in complete if name.lower() == b"content-type"), b"")
        missing = [*self._always, _PRIVATE, *(_PAGES if kind.startswith(b"text/html") else ())]
        if self._leaving():
            missing.append((b"connection", b"close"))
        present = {name.lower() for name, _ in complete}
        complete += (header for header in missing if header[0] not in present)
        overhead = trace.overhead(time.perf_counter(), stream=kind.startswith(b"text/event-stream"))
        complete.append((b"x-request-id", trace.request_id.encode()))
        complete.append((b"x-tunery-overhead-ms", b"%.2f" % (1000 * overhead)))
        if trace.span is not None:
            complete.append((b"traceparent", trace.span.traceparent().encode()))
        return complete
