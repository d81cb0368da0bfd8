"""Owns writing the answer to a completion request: whole, or as the chunks of a stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from msgspec import UNSET

from tunery.gateway.api.response.generation import Answers, Piece
from tunery.gateway.api.response.logprobs import CompletionLogprobs, prompt_logprobs
from tunery.gateway.api.schemas.requests import CompletionRequest
from tunery.gateway.api.schemas.responses import Choice, Completion

__all__ = ["CompletionAnswer"]

WORK = 10
"""What a token of the prompt and its alternatives count for."""


class CompletionAnswer:
    """The answer to `request`, as `answers` make it."""

    def __init__(self, request: CompletionRequest, answers: Answers) -> None:
        self._request, self._answers = request, answers
        self._renderer = answers.gateway.renderer
        self._logprobs = [
            CompletionLogprobs(
                self._renderer, echoed=wanted.prompt if request.echo else (), skip_special=answers.shown.skip_special
            )
            for wanted in answers.wanted
        ]

    async def whole(self) -> Completion:
        """The finished answer."""
        gathered: list[list[Piece]] = [[] for _ in self._answers.wanted]
        async with contextlib.aclosing(self._answers.pieces()) as pieces:
            async for piece in pieces:
                gathered[piece.index].append(piece)
        return self._completion([await self._read(own) for own in gathered], usage=self._answers.usage)

    async def chunks(self) -> AsyncGenerator[Completion, None]:
        """The stream; with the usage at its end if asked for."""
        options = self._request.stream_options
        usage = options is not None and bool(options.include_usage)
        async with contextlib.aclosing(self._answers.pieces()) as pieces:
            async for piece in pieces:
                choice = await self._read([piece])
                scored = choice.logprobs and choice.logprobs["tokens"]
                if choice.text or piece.finish or scored or choice.prompt_logprobs is not UNSET:
                    yield self._completion([choice], usage=None if usage else UNSET)
        if usage:
            yield self._completion([], usage=self._answers.usage)

    async def _read(self, pieces: Sequence[Piece]) -> Choice:
        """What these pieces add; log-probabilities of many tokens are written off the event loop."""
        scores = sum(1 + len(piece.token.top) + len(piece.token.prompt) * WORK for piece in pieces)
        size = scores if self._request.logprobs is not None or pieces[0].token.prompt else 0
        return await self._answers.gateway.reading(size, lambda _: self._choice(pieces))

    def _choice(self, pieces: Sequence[Piece]) -> Choice:
        """What these pieces, all of one choice, add to it."""
        first, wanted = pieces[0], self._answers.wanted[pieces[0].index]
        echoed = wanted.prompt if self._request.echo and first.first else ()
        before = self._renderer.decode(echoed, self._answers.shown.skip_special)
        return Choice(
            index=first.index,
            text=before + "".join(piece.text for piece in pieces),
            prompt_logprobs=prompt_logprobs(self._renderer, self._request.prompt_logprobs, wanted.prompt, first),
            logprobs=None if self._request.logprobs is None else self._logprobs[first.index].of(pieces),
            finish_reason=pieces[-1].finish,
        )

    def _completion(self, choices: list[Choice], *, usage: Any) -> Completion:
        return Completion(
            id=f"cmpl-{self._answers.id}",
            created=int(self._answers.created),
            model=self._request.model,
            choices=choices,
            system_fingerprint=self._answers.target.fingerprint,
            usage=usage,
        )
