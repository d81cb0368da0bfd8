"""Reads a chat request: renders its conversation with the base's template and decides how each choice is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tunery.gateway.api.request.choices import ChoiceRequest
from tunery.gateway.api.request.context_length import length_check, newest_that_fit, output_budget, truncate_prompt
from tunery.gateway.api.request.messages import read_messages
from tunery.gateway.api.request.sampling import OutputOptions, read_samplings
from tunery.gateway.api.request.structured_output import read_constraint
from tunery.gateway.api.request.tool_call_grammar import TOOL_CALL_MARKS, tool_call_constraint
from tunery.gateway.api.request.tools import ToolCalling
from tunery.gateway.api.schemas.requests import ChatRequest
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import Ready
from tunery.gateway.engine.sampling_params import Constraint
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.errors import InvalidInput

__all__ = ["check_chat", "read_chat"]

MAX_MESSAGES = 4096
MAX_TEMPLATE_OPTIONS = 2**16
"""Bytes of `chat_template_kwargs` as JSON."""


def check_chat(data: ChatRequest) -> None:
    """Raise InvalidInput for fields of a chat request that contradict each other."""
    if data.top_logprobs is not None and not data.logprobs:
        raise InvalidInput("top_logprobs needs logprobs: true", param="top_logprobs")
    if data.continue_final_message and data.add_generation_prompt:
        raise InvalidInput(
            "continue_final_message continues the last message, and add_generation_prompt begins a new one; "
            "send one of them",
            param="continue_final_message",
        )


async def read_chat(
    data: ChatRequest,
    tools: ToolCalling,
    *,
    gateway: Gateway,
    ready: Ready,
    size: int,
    param: str = "messages",
    drop_oldest: bool = False,
) -> list[ChoiceRequest]:
    """The request's choices, all with the same prompt. Rendering runs off the event loop when the conversation, in
    bytes, is large.

    `param` is where the client wrote the conversation. With `drop_oldest`, its oldest turns are left out where it does
    not fit the context. Raises InvalidInput naming the field that is wrong, also when the conversation does not fit.
    """
    if len(data.messages) > MAX_MESSAGES:
        raise InvalidInput(f"{param} has {len(data.messages)} messages; the limit is {MAX_MESSAGES}", param=param)
    constraint = _constraint(data, tools, gateway.renderer)
    context = ready.context_length
    renderer = gateway.renderer.with_options(_template_options(data, gateway.renderer))

    requested, default = data.max_completion_tokens or data.max_tokens, gateway.settings.default_max_tokens

    def render(check_wanted: Callable[[], None]) -> list[int]:
        check = length_check(check_wanted, context=context, param=param, truncate=data.truncate_prompt_tokens)

        def prompt_ids(messages: list[dict[str, Any]]) -> list[int]:
            return renderer.prompt_ids(
                messages,
                add_generation_prompt=data.add_generation_prompt is not False,
                continue_final=bool(data.continue_final_message),
                tools=tools.offered,
                check_length=check,
            )

        messages = read_messages(data.messages)
        if not drop_oldest:
            return prompt_ids(messages)
        return newest_that_fit(messages, prompt_ids, context=context, output=requested, default=default)

    prompt = truncate_prompt(
        tuple(await gateway.offload(size, render)),
        data.truncate_prompt_tokens,
        context=context,
        output=requested or 1,
    )
    max_tokens = output_budget(len(prompt), requested, context=context, default=default, param=param)
    output = OutputOptions(
        max_tokens=max_tokens,
        logprobs=(data.top_logprobs or 0) if data.logprobs else None,
        prompt_logprobs=data.prompt_logprobs,
        constraint=constraint,
    )
    samplings = read_samplings(data, output, vocab_size=ready.vocab_size, renderer=renderer)
    return [ChoiceRequest(prompt, sampling) for sampling in samplings]


def _template_options(data: ChatRequest, renderer: Renderer) -> dict[str, Any]:
    """The variables that the request sets for the chat template."""
    options = dict(data.chat_template_kwargs or {})
    if len(msgspec.json.encode(options)) > MAX_TEMPLATE_OPTIONS:
        raise InvalidInput(
            f"chat_template_kwargs is longer than {MAX_TEMPLATE_OPTIONS} bytes of JSON; shorten it",
            param="chat_template_kwargs",
        )
    if data.reasoning_effort is None:
        return options
    if not renderer.template or "reasoning_effort" not in renderer.template.variables:
        if data.reasoning_effort == "none":
            return options
        raise InvalidInput(
            "reasoning_effort is not supported, because this base's chat template does not read it; leave it out",
            code="unsupported_parameter",
            param="reasoning_effort",
        )
    return {"reasoning_effort": data.reasoning_effort} | options


def _constraint(data: ChatRequest, tools: ToolCalling, renderer: Renderer) -> Constraint | None:
    """What the output must be: the structure that the request asks for, a tool call, or either of them."""
    structure = read_constraint(data)
    if not tools.functions or not (structure or tools.required):
        return structure
    if structure and (tools.required or structure.kind not in ("json_schema", "json_object")):
        raise InvalidInput(
            "the output cannot be both a tool call and the structure that the request asks for; "
            'only tool_choice "auto" can be combined with a JSON response_format',
            param="tool_choice",
        )
    return tool_call_constraint(
        tools.functions,
        renderer.call_style,
        several=tools.several,
        control=renderer.control_ids(TOOL_CALL_MARKS),
        instead=structure,
    )
