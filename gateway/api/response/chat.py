"""Builds the response to a chat request, in one piece or as the chunks of a stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Literal

from msgspec import UNSET

from tunery.gateway.api.request.tools import ToolCalling
from tunery.gateway.api.response.chat_choice import (
    EMPTY,
    ChatChoiceBuilder,
    ContentPart,
    first_message,
    stream_messages,
    whole_message,
)
from tunery.gateway.api.response.generation import Generation, OutputDelta
from tunery.gateway.api.response.logprobs import SIZE_PER_PROMPT_TOKEN, chat_logprobs, prompt_logprobs
from tunery.gateway.api.schemas.requests import ChatRequest
from tunery.gateway.api.schemas.responses import ChatChoice, ChatCompletion, Logprobs, TokenLogprob
from tunery.gateway.resolver import Target

__all__ = ["ChatCompletionBuilder"]


class ChatCompletionBuilder:
    """The response to `request`, from the choices that `generation` produces."""

    def __init__(self, request: ChatRequest, generation: Generation, tools: ToolCalling) -> None:
        self._request, self._generation, self._tools = request, generation, tools
        count = len(generation.choices)
        self._choices = [ChatChoiceBuilder(tools, f"call_{generation.id}_{index}") for index in range(count)]

    @property
    def target(self) -> Target:
        """What answers."""
        return self._generation.target

    async def complete(self) -> ChatCompletion:
        """The finished response."""
        count = len(self._choices)
        parts: list[list[ContentPart]] = [[] for _ in range(count)]
        logprobs: list[list[TokenLogprob]] = [[] for _ in range(count)]
        prompts: list[Any] = [UNSET] * count
        async with contextlib.aclosing(self._generation.deltas()) as deltas:
            async for delta in deltas:
                parts[delta.index] += self._choices[delta.index].push(delta)
                logprobs[delta.index] += self._logprobs(delta)
                if delta.first:
                    prompts[delta.index] = await self._prompt_logprobs(delta)
        choices = [
            ChatChoice(
                index=index,
                message=whole_message(parts[index]),
                delta=UNSET,
                prompt_logprobs=prompts[index],
                logprobs=Logprobs(logprobs[index]) if self._request.logprobs else None,
                finish_reason=choice.finish,
            )
            for index, choice in enumerate(self._choices)
        ]
        return self._completion("chat.completion", choices, usage=self._generation.usage)

    async def chunks(self) -> AsyncGenerator[ChatCompletion, None]:
        """The stream: each choice's role, text, tool calls and finish reason, then the usage if requested."""
        options = self._request.stream_options
        usage = options is not None and bool(options.include_usage)
        async with contextlib.aclosing(self._generation.deltas()) as deltas:
            async for delta in deltas:
                prompt = await self._prompt_logprobs(delta)
                for choice in self._stream_choices(delta, prompt):
                    yield self._completion("chat.completion.chunk", [choice], usage=None if usage else UNSET)
        if usage:
            yield self._completion("chat.completion.chunk", [], usage=self._generation.usage)

    def _stream_choices(self, delta: OutputDelta, prompt: Any) -> Iterator[ChatChoice]:
        """What a delta adds to its choice; nothing while its text is held back. The last part has the finish reason."""
        choice, logprobs = self._choices[delta.index], self._logprobs(delta)
        messages = [first_message(self._tools)] if delta.first else []
        messages += stream_messages(choice.push(delta))
        if not messages and (delta.finish or logprobs):
            messages = [EMPTY]
        last = len(messages) - 1
        for at, message in enumerate(messages):
            yield ChatChoice(
                index=delta.index,
                message=UNSET,
                delta=message,
                prompt_logprobs=prompt if at == 0 else UNSET,
                logprobs=Logprobs(logprobs) if logprobs and at == last else None,
                finish_reason=choice.finish if at == last else None,
            )

    def _logprobs(self, delta: OutputDelta) -> list[TokenLogprob]:
        return chat_logprobs(self._generation.gateway.renderer, delta) if self._request.logprobs else []

    async def _prompt_logprobs(self, delta: OutputDelta) -> Any:
        """The prompt's log-probabilities, from the first delta; those of long prompts are built off the event loop."""
        gateway, top = self._generation.gateway, self._request.prompt_logprobs
        if top is None or not delta.first:
            return UNSET
        prompt = self._generation.choices[delta.index].prompt
        return await gateway.offload(
            len(delta.token.prompt_scores) * SIZE_PER_PROMPT_TOKEN,
            lambda _: prompt_logprobs(gateway.renderer, top, prompt, delta),
        )

    def _completion(
        self, kind: Literal["chat.completion", "chat.completion.chunk"], choices: list[ChatChoice], *, usage: Any
    ) -> ChatCompletion:
        return ChatCompletion(
            id=f"chatcmpl-{self._generation.id}",
            object=kind,
            created=int(self._generation.created),
            model=self._request.model,
            choices=choices,
            system_fingerprint=self._generation.fingerprint,
            usage=usage,
        )
