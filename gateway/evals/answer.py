"""Answer a chat request that came without HTTP, by the same code as one that came with it."""

from __future__ import annotations

from typing import Any

import msgspec

from tunery.gateway.api.http.trace import Trace
from tunery.gateway.api.inference import ENDPOINTS, answer
from tunery.gateway.api.request.call import Call
from tunery.gateway.api.schemas.responses import ChatCompletion
from tunery.gateway.api.state import Gateway

__all__ = ["answer_chat"]


async def answer_chat(gateway: Gateway, body: dict[str, Any], *, background: bool = True) -> ChatCompletion:
    """The whole answer to the body of a chat request; raises what the endpoint answers with."""
    call = Call(msgspec.json.encode(body), Trace(), background=background)
    completion: ChatCompletion = await answer(ENDPOINTS["/v1/chat/completions"], call, gateway)
    return completion
