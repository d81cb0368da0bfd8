"""Builds the response to a Responses request from a chat's generation: its events, and the whole of it at their end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Literal

import msgspec

from tunery.gateway.api.items.chat_request import naming_fields_of_responses
from tunery.gateway.api.items.output import Event, OutputBuilder
from tunery.gateway.api.request.tools import ToolCalling
from tunery.gateway.api.response.chat_choice import ChatChoiceBuilder
from tunery.gateway.api.response.generation import Generation, OutputDelta
from tunery.gateway.api.response.logprobs import chat_logprobs
from tunery.gateway.api.schemas.items import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseError,
    ResponseObject,
    ResponseRequest,
    ResponseUsage,
)
from tunery.gateway.api.schemas.responses import ErrorEnvelope, TokenLogprob
from tunery.gateway.resolver import Target

__all__ = ["ResponseBuilder"]

_ENDS = {"completed": "response.completed", "incomplete": "response.incomplete"}


class ResponseBuilder:
    """The response to `data` from the one choice of `generation`. `save` stores it before its end is announced.

    It is also the format of its own stream: events have the names of their types, and a failure is an event like the
    others.
    """

    end = b""

    def __init__(
        self,
        data: ResponseRequest,
        generation: Generation,
        tools: ToolCalling,
        *,
        save: Callable[[ResponseObject], Awaitable[None]] | None = None,
    ) -> None:
        self._data, self._generation, self._save = data, generation, save
        self._choice = ChatChoiceBuilder(tools, f"call_{generation.id}")
        self._output = OutputBuilder(generation.id)
        self._echoed = _echo(data, generation)
        self._sent = 0
        self._response = self._build("in_progress")

    @property
    def target(self) -> Target:
        """What answers."""
        return self._generation.target

    async def complete(self) -> ResponseObject:
        """The finished response."""
        async with contextlib.aclosing(self.events()) as events:
            async for _ in events:
                """The response grows with them."""
        return self._response

    async def events(self) -> AsyncGenerator[Event, None]:
        """The stream, beginning with the first token, so that what fails before it is an ordinary error response."""
        with naming_fields_of_responses():
            async with contextlib.aclosing(self._generation.deltas()) as deltas:
                async for delta in deltas:
                    if delta.first:
                        for event in self._begin():
                            yield event
                    for event in self._output.push(self._choice.push(delta), self._logprobs(delta)):
                        yield self._numbered(event)
        status: Literal["incomplete", "completed"] = "incomplete" if self._choice.finish == "length" else "completed"
        for event in self._output.end(status):
            yield self._numbered(event)
        self._response = self._build(status)
        if self._save is not None:
            await self._save(self._response)
        yield self._numbered({"type": _ENDS[status], "response": self._response})

    def event(self, chunk: Any) -> bytes:
        """See EventFormat."""
        return f"event: {chunk['type']}\ndata: ".encode() + msgspec.json.encode(chunk) + b"\n\n"

    def failure(self, error: ErrorEnvelope, status: int) -> bytes:
        """See EventFormat."""
        code = {400: "invalid_prompt", 429: "rate_limit_exceeded"}.get(status, "server_error")
        events = [] if self._sent else self._begin()
        failed = self._build("failed", error=ResponseError(code, error.error.message))
        return b"".join(map(self.event, [*events, self._numbered({"type": "response.failed", "response": failed})]))

    def _begin(self) -> list[Event]:
        kinds = ("response.created", "response.in_progress")
        return [self._numbered({"type": kind, "response": self._response}) for kind in kinds]

    def _numbered(self, event: Event) -> Event:
        number, self._sent = self._sent, self._sent + 1
        return {**event, "sequence_number": number}

    def _logprobs(self, delta: OutputDelta) -> list[TokenLogprob]:
        if self._generation.choices[0].sampling.logprobs is None:
            return []
        return chat_logprobs(self._generation.gateway.renderer, delta)

    def _build(
        self, status: Literal["in_progress", "completed", "incomplete", "failed"], *, error: ResponseError | None = None
    ) -> ResponseObject:
        ended = status in _ENDS
        return ResponseObject(
            id=f"resp_{self._generation.id}",
            created_at=int(self._generation.created),
            completed_at=int(time.time()) if status == "completed" else None,
            status=status,
            error=error,
            incomplete_details=IncompleteDetails("max_output_tokens") if status == "incomplete" else None,
            output=list(self._output.items),
            usage=_usage(self._generation) if ended else None,
            system_fingerprint=self._generation.fingerprint,
            **self._echoed,
        )


def _usage(generation: Generation) -> ResponseUsage:
    usage = generation.usage
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(),
        total_tokens=usage.total_tokens,
    )


def _echo(data: ResponseRequest, generation: Generation) -> dict[str, Any]:
    """The fields of the request that its response repeats, with what was used where they were left out."""
    sampling = generation.choices[0].sampling
    reasoning, text = data.reasoning, data.text
    same = ("model", "instructions", "max_output_tokens", "max_tool_calls", "previous_response_id")
    bookkeeping = ("prompt_cache_key", "safety_identifier", "user")
    return {
        **{name: getattr(data, name) for name in (*same, *bookkeeping)},
        "metadata": data.metadata or {},
        "parallel_tool_calls": data.parallel_tool_calls is not False,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "store": bool(data.store),
        "temperature": sampling.temperature,
        "text": {
            "format": {"type": "text", **_present((text and text.format) or {})},
            "verbosity": (text and text.verbosity) or "medium",
        },
        "tool_choice": data.tool_choice or "auto",
        "tools": [dict.fromkeys(("description", "parameters", "strict")) | _present(tool) for tool in data.tools or []],
        "top_logprobs": data.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": data.truncation or "disabled",
    }


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
