"""A base's control tokens in texts: find them, and keep plain text that spells one from becoming one.

Plain text that spells a control token is masked with a stand-in before it goes through the chat template; the tokenizer
then encodes it as the plain text it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

__all__ = ["SpecialTokens"]

_OPEN, _CLOSE, _FIRST = "\ufdd0", "\ufdd1", 0xE000
_MASKED = re.compile(f"{_OPEN}([\ue000-\ue3ff]{{2}}){_CLOSE}")
_STEP = 1 << 18
"""Characters that are searched in one go: a search holds the interpreter's lock until it ends."""


class SpecialTokens:
    """The control tokens `texts` of one tokenizer, longest first."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = sorted(texts, key=lambda text: (-len(text), text))
        self._indices = {text: index for index, text in enumerate(self.texts)}
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        self._longest = max(map(len, self.texts), default=0)
        self._first_characters = {text[:1] for text in self.texts}

    def find(self, text: str, start: int = 0, stop: int | None = None) -> re.Match[str] | None:
        """The first control token in `text[start:stop]`."""
        return self._pattern.search(text, start, len(text) if stop is None else stop)

    def find_all(self, text: str) -> Iterator[re.Match[str]]:
        """Every control token in `text`."""
        if not any(character in text for character in self._first_characters):
            return
        at = 0
        while at < len(text):
            stop = min(len(text), at + _STEP)
            match = self._pattern.search(text, at, stop + self._longest)
            if match is None or match.start() >= stop:
                at = stop
            else:
                yield match
                at = match.end()

    def mask(self, text: str) -> str:
        """Replace every control token that plain text spells with a stand-in."""
        pieces, done = [], 0
        for match in self.find_all(text):
            pieces += [text[done : match.start()], _stand_in(self._indices[match[0]])]
            done = match.end()
        return "".join([*pieces, text[done:]]) if pieces else text

    def unmask(self, text: str) -> str:
        """Undo `mask`."""
        return _MASKED.sub(lambda match: self._spelled(match[0], match[1]), text)

    def masked_spans(self, text: str) -> Iterator[tuple[int, int, bool]]:
        """Stretches (start, end, masked) that make up the text; `masked` where one holds stand-ins.

        A masked stretch lies between two control tokens, so that encoding it apart from the others changes nothing in
        them.
        """
        if _OPEN not in text:
            yield 0, len(text), False
            return
        done = at = 0
        for match in [*self.find_all(text), None]:
            edge = match.start() if match else len(text)
            if _OPEN in text[at:edge] and _MASKED.search(text, at, edge):
                if done < at:
                    yield done, at, False
                yield at, edge, True
                done = edge
            at = match.end() if match else edge
        if done < len(text):
            yield done, len(text), False

    def _spelled(self, stand_in: str, code: str) -> str:
        index = (ord(code[0]) - _FIRST) * 1024 + ord(code[1]) - _FIRST
        return self.texts[index] if index < len(self.texts) else stand_in


def _stand_in(index: int) -> str:
    # Two digits in base 1024: a tokenizer may well have more control tokens than there are private characters.
    return f"{_OPEN}{chr(_FIRST + index // 1024)}{chr(_FIRST + index % 1024)}{_CLOSE}"
