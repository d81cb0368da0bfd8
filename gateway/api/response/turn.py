"""Begins to answer a conversation: renders it and hands it to the engine, for every endpoint that takes one."""

from __future__ import annotations

from tunery.gateway.api.request.call import Call
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
    data: ChatRequest,
    tools: ToolCalling,
    *,
    call: Call,
    gateway: Gateway,
    target: Target,
    ready: Ready,
    size: int,
    param: str = "messages",
    drop_oldest: bool = False,
) -> Generation:
    """The answers to `data` as the engine is to generate them; see read_chat."""
    choices = await read_chat(
        data, tools, gateway=gateway, ready=ready, size=size, param=param, drop_oldest=drop_oldest
    )  # fmt: skip
    marks = gateway.renderer.control_ids(TOOL_CALL_MARKS) if tools.functions else {}
    return Generation(gateway, target, choices, text_options(data), call, marks)
