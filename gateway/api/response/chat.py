"""Owns writing a chat answer: whole, or as the chunks of a stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Literal

from msgspec import UNSET

from tunery.gateway.api.request.tools import Tooling
from tunery.gateway.api.response.chat_choice import NOTHING, Said, Turn, greeting, message, parts
from tunery.gateway.api.response.generation import Answers, Piece
from tunery.gateway.api.response.logprobs import chat_logprobs, prompt_logprobs
from tunery.gateway.api.schemas.requests import ChatRequest
from tunery.gateway.api.schemas.responses import ChatChoice, ChatCompletion, Logprobs, TokenLogprob

__all__ = ["ChatAnswer"]

WORK = 10
"""What a token of the prompt and its alternatives count for."""


class ChatAnswer:
    """The answer to `request`, as `answers` make it."""

    def __init__(self, request: ChatRequest, answers: Answers, tooling: Tooling) -> None:
        self._request, self._answers, self._tooling = request, answers, tooling
        self._turns = [Turn(tooling, f"call_{answers.id}_{index}") for index in range(len(answers.wanted))]

    async def whole(self) -> ChatCompletion:
        """The finished answer."""
        count = len(self._turns)
        said: list[list[Said]] = [[] for _ in range(count)]
        logprobs: list[list[TokenLogprob]] = [[] for _ in range(count)]
        prompts: list[Any] = [UNSET] * count
        async with contextlib.aclosing(self._answers.pieces()) as pieces:
            async for piece in pieces:
                said[piece.index] += self._turns[piece.index].push(piece)
                logprobs[piece.index] += self._logprobs(piece)
                if piece.first:
                    prompts[piece.index] = await self._prompt_logprobs(piece)
        choices = [
            ChatChoice(
                index=index,
                message=message(said[index]),
                delta=UNSET,
                prompt_logprobs=prompts[index],
                logprobs=Logprobs(logprobs[index]) if self._request.logprobs else None,
                finish_reason=turn.finish,
            )
            for index, turn in enumerate(self._turns)
        ]
        return self._completion("chat.completion", choices, usage=self._answers.usage)

    async def chunks(self) -> AsyncGenerator[ChatCompletion, None]:
        """The stream: the role with each choice's first part, its text and calls, its finish, and the usage if asked for."""
        options = self._request.stream_options
        usage = options is not None and bool(options.include_usage)
        async with contextlib.aclosing(self._answers.pieces()) as pieces:
            async for piece in pieces:
                scores = await self._prompt_logprobs(piece)
                for choice in self._parts(piece, scores):
                    yield self._completion("chat.completion.chunk", [choice], usage=None if usage else UNSET)
        if usage:
            yield self._completion("chat.completion.chunk", [], usage=self._answers.usage)

    def _parts(self, piece: Piece, scores: Any) -> Iterator[ChatChoice]:
        """What a piece adds to its choice; nothing while all of it is held back. The last part has the finish."""
        turn, logprobs = self._turns[piece.index], self._logprobs(piece)
        deltas = [greeting(self._tooling)] if piece.first else []
        deltas += parts(turn.push(piece))
        if not deltas and (piece.finish or logprobs):
            deltas = [NOTHING]
        last = len(deltas) - 1
        for at, delta in enumerate(deltas):
            yield ChatChoice(
                index=piece.index,
                message=UNSET,
                delta=delta,
                prompt_logprobs=scores if at == 0 else UNSET,
                logprobs=Logprobs(logprobs) if logprobs and at == last else None,
                finish_reason=turn.finish if at == last else None,
            )

    def _logprobs(self, piece: Piece) -> list[TokenLogprob]:
        return chat_logprobs(self._answers.gateway.renderer, piece) if self._request.logprobs else []

    async def _prompt_logprobs(self, piece: Piece) -> Any:
        """The prompt's scores, which come with the first piece; those of a long one are written off the event loop."""
        gateway, wanted = self._answers.gateway, self._request.prompt_logprobs
        prompt = self._answers.wanted[piece.index].prompt
        return await gateway.reading(
            len(piece.token.prompt) * WORK, lambda _: prompt_logprobs(gateway.renderer, wanted, prompt, piece)
        )

    def _completion(
        self, kind: Literal["chat.completion", "chat.completion.chunk"], choices: list[ChatChoice], *, usage: Any
    ) -> ChatCompletion:
        return ChatCompletion(
            id=f"chatcmpl-{self._answers.id}",
            object=kind,
            created=int(self._answers.created),
            model=self._request.model,
            choices=choices,
            system_fingerprint=self._answers.target.fingerprint,
            usage=usage,
        )
