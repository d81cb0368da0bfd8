"""Answer a chat request that came without HTTP, by the same code as one that came with it."""

from __future__ import annotations

from typing import Any

import msgspec

from tunery.gateway.api.http.trace import Trace
from tunery.gateway.api.inference import ENDPOINTS, answer
from tunery.gateway.api.request.call import Call
from tunery.gateway.api.schemas.responses import ChatCompletion
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.registry.usage.records import UsageRecord

__all__ = ["answer_chat"]


PATH = "/v1/chat/completions"


async def answer_chat(
    gateway: Gateway,
    body: dict[str, Any],
    *,
    tenant: str | None = None,
    usage: list[UsageRecord] | None = None,
    background: bool = True,
) -> ChatCompletion:
    """The whole answer to the body of a chat request, which names exact versions, of a `tenant`, by default that of whoever
    has no key; what it used is added to `usage`. Raises what the endpoint answers with."""
    # Whoever made the run may use them, which was looked at then.
    used: list[UsageRecord] = []
    call = Call(
        msgspec.json.encode(body),
        Trace(),
        Principal(tenant=tenant or gateway.jobs.tenant, shares=gateway.shares, keyed=gateway.settings.auth),
        background=background,
        endpoint=PATH,
        usage=used,
    )
    completion: ChatCompletion = await answer(ENDPOINTS[PATH], call, gateway)
    if usage is not None:
        usage += used
    return completion
