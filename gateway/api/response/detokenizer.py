"""Owns going from tokens to text that may be shown: whole characters only, nothing of a stop string, nothing after one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec

from tunery.gateway.engine.messages import Token
from tunery.plugins.data.render.renderer import Renderer

__all__ = ["TextOptions", "TextStream"]


class TextOptions(msgspec.Struct, frozen=True):
    """Which text is shown: up to a stop string, or with it; control tokens or not. The first `min_tokens` tokens do not stop."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special: bool = True
    min_tokens: int = 0


class TextStream:
    """One answer's text as it grows. `finish` becomes "stop" or "length" with the last piece.

    Control tokens are not shown, except for the `marks`, by their ids. `shown` has the tokens whose text began to be shown with the
    last piece; those of a stop string, and behind one, never are.
    """

    def __init__(self, renderer: Renderer, options: TextOptions, marks: Mapping[int, str]) -> None:
        self._decoder = renderer.decoder(skip_special=options.skip_special)
        self._options = options
        self._stops = options.stops
        self._marks = marks
        self._held = ""
        self._released = 0
        self._waiting: deque[tuple[int, Token]] = deque()
        self.shown: tuple[Token, ...] = ()
        self.tokens = 0
        self.finish: str | None = None

    def push(self, token: Token) -> str:
        """Take a token and return the text that can be shown now; possibly none."""
        self.tokens += 1
        # The token that ends a turn is not part of what was said, unless that is asked for.
        if token.finish != "stop" or self._options.include_stop:
            self._waiting.append((self._released + len(self._held), token))
            mark = self._marks.get(token.token)
            self._held += self._decoder.push(token.token) if mark is None else self._decoder.flush() + mark
        if token.finish is not None:
            self._held += self._decoder.flush()
        early = self.tokens <= self._options.min_tokens
        found = [] if early else [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, stop = min(found, key=lambda pair: pair[0])
            self.finish = "stop"
            return self._release(at + len(stop) * self._options.include_stop)
        if token.finish is not None:
            self.finish = token.finish
            return self._release(len(self._held), last=True)
        return self._release(len(self._held) - (0 if early else self._undecided()))

    def _release(self, count: int, *, last: bool = False) -> str:
        """The first `count` characters; with `last` also the tokens that have none."""
        text, self._held = self._held[:count], self._held[count:]
        self._released += count
        shown = []
        while self._waiting and (last or self._waiting[0][0] < self._released):
            shown.append(self._waiting.popleft()[1])
        self.shown = tuple(shown)
        return text

    def _undecided(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
