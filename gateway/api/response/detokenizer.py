"""Turns tokens into text that may be shown: whole characters only, and nothing of a stop string or after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from tunery.gateway.api.request.text_options import TextOptions
from tunery.gateway.engine.messages import Token
from tunery.plugins.data.render.renderer import Renderer

__all__ = ["Detokenizer"]


class Detokenizer:
    """The text of one choice as it grows. `finish` becomes "stop" or "length" with its last token.

    Control tokens are hidden, except for those in `shown_controls`, which maps ids to text. `shown` has the tokens
    whose text starts in what the last `push` returned; tokens of a stop string or after one are never shown.
    """

    def __init__(self, renderer: Renderer, options: TextOptions, shown_controls: Mapping[int, str]) -> None:
        self._detokenizer = renderer.detokenizer(skip_special=options.skip_special)
        self._options = options
        self._shown_controls = shown_controls
        self._held = ""
        self._released = 0
        self._waiting: deque[tuple[int, Token]] = deque()
        self.shown: tuple[Token, ...] = ()
        self.tokens = 0
        self.finish: str | None = None

    def push(self, token: Token) -> str:
        """Take a token and return the text that can be shown now; possibly none."""
        self.tokens += 1
        self._append(token)
        early = self.tokens <= self._options.min_tokens
        stop = None if early else self._first_stop()
        if stop is not None:
            at, text = stop
            self.finish = "stop"
            return self._release(at + len(text) * self._options.include_stop)
        if token.finish is not None:
            self.finish = token.finish
            return self._release(len(self._held), last=True)
        return self._release(len(self._held) - (0 if early else self._stop_prefix()))

    def _append(self, token: Token) -> None:
        """Add a token's text to what is held. A stop token adds none, unless the stop is to be included."""
        if token.finish != "stop" or self._options.include_stop:
            self._waiting.append((self._released + len(self._held), token))
            control = self._shown_controls.get(token.token)
            self._held += (
                self._detokenizer.push(token.token) if control is None else self._detokenizer.flush() + control
            )
        if token.finish is not None:
            self._held += self._detokenizer.flush()

    def _first_stop(self) -> tuple[int, str] | None:
        """Where the first stop string in the held text begins, and which one it is."""
        stops = [(at, stop) for stop in self._options.stops if (at := self._held.find(stop)) >= 0]
        return min(stops, key=lambda pair: pair[0]) if stops else None

    def _release(self, count: int, *, last: bool = False) -> str:
        """The first `count` characters that are held; with `last`, tokens without text count as shown too."""
        text, self._held = self._held[:count], self._held[count:]
        self._released += count
        shown = []
        while self._waiting and (last or self._waiting[0][0] < self._released):
            shown.append(self._waiting.popleft()[1])
        self.shown = tuple(shown)
        return text

    def _stop_prefix(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        longest = 0
        for stop in self._options.stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
