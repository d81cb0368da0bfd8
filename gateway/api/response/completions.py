"""Builds the response to a completion request, in one piece or as the chunks of a stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from msgspec import UNSET

from tunery.gateway.api.response.generation import Generation, OutputDelta
from tunery.gateway.api.response.logprobs import SIZE_PER_PROMPT_TOKEN, CompletionLogprobs, prompt_logprobs
from tunery.gateway.api.schemas.requests import CompletionRequest
from tunery.gateway.api.schemas.responses import Choice, Completion
from tunery.gateway.resolver import Target

__all__ = ["CompletionBuilder"]


class CompletionBuilder:
    """The response to `request`, from the choices that `generation` produces."""

    def __init__(self, request: CompletionRequest, generation: Generation) -> None:
        self._request, self._generation = request, generation
        self._renderer = generation.gateway.renderer
        self._skip_special = generation.text_options.skip_special
        self._logprobs = [
            CompletionLogprobs(
                self._renderer, echoed=choice.prompt if request.echo else (), skip_special=self._skip_special
            )
            for choice in generation.choices
        ]

    @property
    def target(self) -> Target:
        """What answers."""
        return self._generation.target

    async def complete(self) -> Completion:
        """The finished response."""
        by_choice: list[list[OutputDelta]] = [[] for _ in self._generation.choices]
        async with contextlib.aclosing(self._generation.deltas()) as deltas:
            async for delta in deltas:
                by_choice[delta.index].append(delta)
        choices = [await self._build_choice(deltas_of_one) for deltas_of_one in by_choice]
        return self._completion(choices, usage=self._generation.usage)

    async def chunks(self) -> AsyncGenerator[Completion, None]:
        """The stream, with the usage at its end if the request asks for it."""
        options = self._request.stream_options
        usage = options is not None and bool(options.include_usage)
        async with contextlib.aclosing(self._generation.deltas()) as deltas:
            async for delta in deltas:
                choice = await self._build_choice([delta])
                scored = choice.logprobs and choice.logprobs["tokens"]
                if choice.text or delta.finish or scored or choice.prompt_logprobs is not UNSET:
                    yield self._completion([choice], usage=None if usage else UNSET)
        if usage:
            yield self._completion([], usage=self._generation.usage)

    async def _build_choice(self, deltas: Sequence[OutputDelta]) -> Choice:
        """What these deltas, all of one choice, add to it; many log-probabilities are built off the event loop."""
        scores = sum(
            1 + len(delta.token.top) + len(delta.token.prompt_scores) * SIZE_PER_PROMPT_TOKEN for delta in deltas
        )
        size = scores if self._request.logprobs is not None or deltas[0].token.prompt_scores else 0
        return await self._generation.gateway.offload(size, lambda _: self._choice(deltas))

    def _choice(self, deltas: Sequence[OutputDelta]) -> Choice:
        first = deltas[0]
        prompt = self._generation.choices[first.index].prompt
        echoed = prompt if self._request.echo and first.first else ()
        return Choice(
            index=first.index,
            text=self._renderer.decode(echoed, self._skip_special) + "".join(delta.text for delta in deltas),
            prompt_logprobs=prompt_logprobs(self._renderer, self._request.prompt_logprobs, prompt, first),
            logprobs=None if self._request.logprobs is None else self._logprobs[first.index].of(deltas),
            finish_reason=deltas[-1].finish,
        )

    def _completion(self, choices: list[Choice], *, usage: Any) -> Completion:
        return Completion(
            id=f"cmpl-{self._generation.id}",
            created=int(self._generation.created),
            model=self._request.model,
            choices=choices,
            system_fingerprint=self._generation.fingerprint,
            usage=usage,
        )
