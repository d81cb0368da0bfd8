"""Send one webhook: one POST to a checked address, within a time limit, without redirects or proxies."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from types import TracebackType
from typing import Self

import httpx2
import msgspec

from tunery.gateway.webhooks.addresses import resolve
from tunery.gateway.webhooks.backoff import retry_after
from tunery.gateway.webhooks.signature import body_of, read_secret, signed_headers
from tunery.registry.configuration.webhooks import WebhooksSettings, networks
from tunery.registry.errors import InvalidInput, TuneryError
from tunery.registry.records import WebhookEvent

__all__ = ["ATTEMPT_SECONDS", "Answer", "Sender"]

ATTEMPT_SECONDS = 15.0
"""Seconds for one attempt, from the look-up of the name to the end of the answer."""
MAX_ANSWER = 2048
"""Bytes that are read of an answer's body."""
GONE = 410


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one attempt: a status and the beginning of the body, or no answer and why (`error`)."""

    status: int | None = None
    body: bytes = b""
    wait: float | None = None
    error: str | None = None

    @property
    def delivered(self) -> bool:
        """Whether the endpoint has taken it."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        """Whether the endpoint never wants it."""
        return self.status == GONE

    @property
    def problem(self) -> str:
        """Why it was not delivered."""
        if self.status is not None and 300 <= self.status < 400:
            return f"HTTP {self.status}: redirects are not followed; configure the new URL"
        return self.error or f"HTTP {self.status}"


class Sender:
    """Sends webhooks to the configured endpoints; raises InvalidInput, with all of them, where secrets are missing."""

    def __init__(
        self,
        settings: WebhooksSettings,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._permitted, self._clock = networks(settings), clock
        self._secrets = _secrets(settings, environ)
        # A proxy would resolve the name again; certificates are those that SSL_CERT_FILE or the system names.
        self._client = httpx2.AsyncClient(
            verify=httpx2.create_ssl_context(), trust_env=False, follow_redirects=False, timeout=ATTEMPT_SECONDS
        )
        self._agent = f"tunery/{version('tunery')}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def send(self, url: str, event: WebhookEvent) -> Answer:
        """Send an event to an endpoint once; never raises for what the endpoint or the network does."""
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                return await self._post(httpx2.URL(url), event, self._secrets[url])
        except TimeoutError:
            return Answer(error=f"no answer within {ATTEMPT_SECONDS:g} s")
        except TuneryError as error:
            return Answer(error=error.message)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            return Answer(error=f"{type(error).__name__}: {error}"[:500])

    async def _post(self, url: httpx2.URL, event: WebhookEvent, secret: bytes) -> Answer:
        # As it is sent: `host` is the Unicode of an internationalised name.
        host, port = url.raw_host.decode(), url.port or (443 if url.scheme == "https" else 80)
        address = await resolve(host, port, permitted=self._permitted)
        body, now = body_of(event), self._clock()
        headers = signed_headers(event.id, body, secret=secret, at=int(now))
        headers |= {"host": url.netloc.decode(), "content-type": "application/json", "user-agent": self._agent}
        request = self._client.build_request(
            # The name is checked against the certificate, though the connection goes to the address.
            "POST", url.copy_with(host=str(address)), content=body, headers=headers, extensions={"sni_hostname": host},
        )  # fmt: skip
        response = await self._client.send(request, stream=True)
        try:
            answered = await _beginning(response)
        finally:
            await response.aclose()
        wait = retry_after(response.headers.get("retry-after"), now=now)
        return Answer(status=response.status_code, body=answered, wait=wait)


async def _beginning(response: httpx2.Response) -> bytes:
    """The first bytes of a body, as they came: decompressed, a small one might fill the memory."""
    body = b""
    async for part in response.aiter_raw():
        body += part
        if len(body) >= MAX_ANSWER:
            break
    return body[:MAX_ANSWER]


def _secrets(settings: WebhooksSettings, environ: Mapping[str, str]) -> dict[str, bytes]:
    secrets, problems = {}, []
    for endpoint in settings.endpoints:
        try:
            secrets[endpoint.url] = read_secret(endpoint, environ=environ)
        except InvalidInput as error:
            problems.append(error.message)
    if problems:
        raise InvalidInput("webhooks cannot be signed:\n" + "\n".join(problems), code="invalid_settings")
    return secrets
