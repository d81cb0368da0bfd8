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

__all__ = ["answer_chat"]


async def answer_chat(
    gateway: Gateway, body: dict[str, Any], *, tenant: str | None = None, background: bool = True
) -> ChatCompletion:
    """The whole answer to the body of a chat request of a tenant, which names exact versions; raises what the endpoint
    answers with."""
    # Whoever made the run may use them, which was looked at then.
    principal = Principal(tenant=tenant or gateway.jobs.tenant, shares=gateway.shares, keyed=gateway.settings.auth)
    call = Call(msgspec.json.encode(body), Trace(), principal, background=background)
    completion: ChatCompletion = await answer(ENDPOINTS["/v1/chat/completions"], call, gateway)
    return completion
