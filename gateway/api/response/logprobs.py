"""Formats log-probabilities: OpenAI's chat and completion shapes, and vLLM's shape for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from tunery.gateway.api.response.generation import OutputDelta
from tunery.gateway.api.schemas.responses import PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob
from tunery.gateway.engine.messages import PromptScore, TopToken
from tunery.plugins.data.render.renderer import Renderer

__all__ = ["SIZE_PER_PROMPT_TOKEN", "CompletionLogprobs", "chat_logprobs", "prompt_logprobs"]

NEVER = -9999.0
"""OpenAI's log-probability of an impossible token; JSON has no minus infinity."""
SIZE_PER_PROMPT_TOKEN = 10
"""What one prompt token with its alternatives adds to the size of offloaded work, in bytes of equally slow text."""


def chat_logprobs(renderer: Renderer, delta: OutputDelta) -> list[TokenLogprob]:
    """The tokens of a delta's text with their alternatives."""
    return [
        TokenLogprob(
            *_token_text(renderer, token.token, token.logprob),
            [TopLogprob(*_token_text(renderer, top.token, top.logprob)) for top in token.top],
        )
        for token in delta.shown
    ]


def prompt_logprobs(
    renderer: Renderer, top: int | None, prompt: Sequence[int], delta: OutputDelta
) -> PromptLogprobs | UnsetType:
    """The prompt's log-probabilities, from a choice's first delta; unset when `top` is None or for later deltas."""
    if top is None or not delta.first:
        return UNSET
    return [
        None,
        *(
            _position(renderer, token, score)
            for token, score in zip(prompt[1:], delta.token.prompt_scores, strict=True)
        ),
    ]


def _position(renderer: Renderer, token: int, score: PromptScore) -> dict[str, PromptLogprob]:
    candidates = {top.token: top.logprob for top in score.top} | {token: score.logprob}
    return {
        str(candidate): PromptLogprob(_finite(logprob), renderer.token_bytes(candidate).decode(errors="replace"))
        for candidate, logprob in candidates.items()
    }


class CompletionLogprobs:
    """OpenAI's older shape for one choice: parallel lists of tokens, log-probabilities, alternatives and text offsets.

    Offsets point into the choice's text, which begins with the prompt where that is echoed.
    """

    def __init__(self, renderer: Renderer, *, echoed: Sequence[int] = (), skip_special: bool = True) -> None:
        self._renderer = renderer
        self._skip_special = skip_special
        self._echoed = echoed
        self._offset = 0

    def of(self, deltas: Sequence[OutputDelta]) -> dict[str, Any]:
        """The lists for what these deltas added."""
        rows: list[tuple[int, float | None, Sequence[TopToken] | None]] = []
        if deltas[0].first and self._echoed:
            scores = zip(self._echoed[1:], deltas[0].token.prompt_scores, strict=True)
            rows = [(self._echoed[0], None, None), *((token, score.logprob, score.top) for token, score in scores)]
        rows += [(token.token, token.logprob, token.top) for delta in deltas for token in delta.shown]
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
        """Return where the token begins and move the offset past it. Control tokens count only where they are shown."""
        before = self._offset
        if not (self._skip_special and self._renderer.is_control(token)):
            # In UTF-8 every character has exactly one byte that does not continue another.
            self._offset += sum(byte & 0xC0 != 0x80 for byte in self._renderer.token_bytes(token))
        return before


def _token_text(renderer: Renderer, token: int, logprob: float) -> tuple[str, float, list[int]]:
    """A token's text, log-probability and exact bytes; part of a character is a replacement character in the text."""
    raw = renderer.token_bytes(token)
    return raw.decode(errors="replace"), _finite(logprob), list(raw)


def _finite(logprob: float) -> float:
    """A log-probability that JSON can represent."""
    return max(logprob, NEVER)
