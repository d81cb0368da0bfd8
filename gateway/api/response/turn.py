"""Begins to answer a conversation: renders it and hands it to the engine, for every endpoint that takes one."""

from __future__ import annotations

from typing import Any

from litestar import Request

from tunery.gateway.api.http.connection import cancel_on_disconnect
from tunery.gateway.api.http.trace import trace_of
from tunery.gateway.api.request.chat import read_chat
from tunery.gateway.api.request.text_options import text_options
from tunery.gateway.api.request.tool_call_grammar import TOOL_CALL_MARKS
from tunery.gateway.api.request.tools import ToolCalling
from tunery.gateway.api.response.generation import Generation
from tunery.gateway.api.schemas.requests import ChatRequest
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import Ready
from tunery.gateway.resolver import Target

__all__ = ["begin_turn"]


async def begin_turn(
    request: Request[Any, Any, Any],
    data: ChatRequest,
    tools: ToolCalling,
    *,
    gateway: Gateway,
    target: Target,
    ready: Ready,
    size: int,
    param: str = "messages",
    drop_oldest: bool = False,
) -> Generation:
    """The answers to `data` as the engine is to generate them; see read_chat. Ends when the client disconnects."""
    choices = await cancel_on_disconnect(
        request,
        lambda: read_chat(data, tools, gateway=gateway, ready=ready, size=size, param=param, drop_oldest=drop_oldest),
    )
    marks = gateway.renderer.control_ids(TOOL_CALL_MARKS) if tools.functions else {}
    return Generation(gateway, target, choices, text_options(data), trace_of(request), marks)
