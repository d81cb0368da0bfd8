"""Owns how log-probabilities are written: for chat, for completions, and vLLM's way for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from tunery.gateway.api.response.generation import Piece
from tunery.gateway.api.schemas.responses import PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob
from tunery.gateway.engine.messages import Score, TopToken
from tunery.plugins.data.render.renderer import Renderer

__all__ = ["CompletionLogprobs", "chat_logprobs", "prompt_logprobs"]

NEVER = -9999.0
"""What OpenAI writes for the log-probability of a token that cannot be; JSON has no minus infinity."""


def chat_logprobs(renderer: Renderer, piece: Piece) -> list[TokenLogprob]:
    """The tokens of a piece's text with their alternatives."""
    return [
        TokenLogprob(
            *_spelled(renderer, token.token, token.logprob),
            [TopLogprob(*_spelled(renderer, top.token, top.logprob)) for top in token.top],
        )
        for token in piece.shown
    ]


def prompt_logprobs(
    renderer: Renderer, wanted: int | None, prompt: Sequence[int], piece: Piece
) -> PromptLogprobs | UnsetType:
    """The scores of the prompt, which come with a choice's first piece; unset where nobody asked, or they have been."""
    if wanted is None or not piece.first:
        return UNSET
    return [
        None,
        *(_place(renderer, token, score) for token, score in zip(prompt[1:], piece.token.prompt, strict=True)),
    ]


def _place(renderer: Renderer, token: int, score: Score) -> dict[str, PromptLogprob]:
    possible = {top.token: top.logprob for top in score.top} | {token: score.logprob}
    return {
        str(number): PromptLogprob(_finite(logprob), renderer.token_bytes(number).decode(errors="replace"))
        for number, logprob in possible.items()
    }


class CompletionLogprobs:
    """OpenAI's older shape for one choice, piece by piece: parallel lists of tokens, log-probabilities, alternatives and offsets.

    The offsets point into the text, which begins with the prompt where that is echoed.
    """

    def __init__(self, renderer: Renderer, *, echoed: Sequence[int] = (), skip_special: bool = True) -> None:
        self._renderer = renderer
        self._skip_special = skip_special
        self._echoed = echoed
        self._offset = 0

    def of(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The lists for what these pieces added."""
        rows: list[tuple[int, float | None, Sequence[TopToken] | None]] = []
        if pieces[0].first and self._echoed:
            scores = zip(self._echoed[1:], pieces[0].token.prompt, strict=True)
            rows = [(self._echoed[0], None, None), *((token, score.logprob, score.top) for token, score in scores)]
        rows += [(token.token, token.logprob, token.top) for piece in pieces for token in piece.shown]
        return {
            "tokens": [self._text(token) for token, _, _ in rows],
            "token_logprobs": [None if logprob is None else _finite(logprob) for _, logprob, _ in rows],
            "top_logprobs": [
                None if tops is None else {self._text(top.token): _finite(top.logprob) for top in tops}
                for _, _, tops in rows
            ],
            "text_offset": [self._advance(token) for token, _, _ in rows],
        }

    def _text(self, token: int) -> str:
        return self._renderer.token_bytes(token).decode(errors="replace")

    def _advance(self, token: int) -> int:
        """Where the token begins; then on behind it. Control tokens are in the text only where they are not skipped."""
        before = self._offset
        if not (self._skip_special and self._renderer.is_control(token)):
            # In UTF-8 every character has one byte that does not continue another.
            self._offset += sum(byte & 0xC0 != 0x80 for byte in self._renderer.token_bytes(token))
        return before


def _spelled(renderer: Renderer, token: int, logprob: float) -> tuple[str, float, list[int]]:
    """A token as text, its log-probability and its exact bytes; half a character is text only together with the other half."""
    spelled = renderer.token_bytes(token)
    return spelled.decode(errors="replace"), _finite(logprob), list(spelled)


def _finite(logprob: float) -> float:
    """A log-probability as JSON can say it."""
    return max(logprob, NEVER)
