"""Turn token ids into text one at a time, for streaming.

tokenizers' own DecodeStream is not used: it has no way to get what it holds back when an answer stops inside a
character, and it holds back bytes that never become a character without bound.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunery.plugins.data.render.tokenizer import BaseTokenizer

__all__ = ["Detokenizer"]


class Detokenizer:
    """An incremental detokenizer: it holds a character back until all its bytes are there."""

    # A UTF-8 character has at most four bytes, so more pending tokens than this are not the start of one.
    _MAX_PENDING = 8

    def __init__(self, tokenizer: BaseTokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._ids: list[int] = []
        self._emitted = 0

    def push(self, token: int) -> str:
        """Add a token; return the text that became certain with it: often a word, sometimes nothing."""
        self._ids.append(token)
        text = self._text(self._ids)
        if text.endswith("\ufffd") and len(self._ids) - self._emitted < self._MAX_PENDING:
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """Return what was held back. Call it once, at the end."""
        return self._emit(self._text(self._ids)) if len(self._ids) > self._emitted else ""

    def _emit(self, text: str) -> str:
        # The tokens already emitted stay in front, because decoders treat the first token of a text differently.
        before = self._text(self._ids[: self._emitted])
        self._ids = self._ids[self._emitted :]
        self._emitted = len(self._ids)
        return text[len(before) :]

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=self._skip_special)
