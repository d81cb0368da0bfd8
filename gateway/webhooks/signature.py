"""Sign webhooks as OpenAI does, which is the scheme of standardwebhooks.com: HMAC-SHA256 over id, time and body."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tunery.registry.configuration.webhooks import WebhookEndpoint, decode_secret
from tunery.registry.errors import InvalidInput
from tunery.registry.records import WebhookEvent

__all__ = ["body_of", "read_secret", "signed_headers"]


def body_of(event: WebhookEvent) -> bytes:
    """The JSON that is sent, the same at every attempt."""
    return msgspec.json.encode(
        {"id": event.id, "object": "event", "created_at": int(event.at), "type": event.type, "data": event.data}
    )


def signed_headers(event_id: str, body: bytes, *, secret: bytes, at: int) -> dict[str, str]:
    """The headers that prove who sent a body, and when (Unix seconds)."""
    digest = hmac.digest(secret, f"{event_id}.{at}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def read_secret(endpoint: WebhookEndpoint, *, environ: Mapping[str, str] = os.environ) -> bytes:
    """The key that signs for an endpoint, from where its setting says; raise InvalidInput, which does not show it."""
    kind, _, place = endpoint.secret.partition(":")
    if kind == "env":
        text = environ.get(place, "")
    elif kind == "file":
        text = _read(Path(place))
    else:
        text = endpoint.secret
    key = decode_secret(text.strip())
    if not key:
        what = {"env": f"the variable {place}", "file": f"the file {place}"}.get(kind, "webhooks.endpoints.secret")
        raise InvalidInput(
            f"{what} must be whsec_ and base64, to sign webhooks to {endpoint.url}", code="invalid_secret"
        )
    return key


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
