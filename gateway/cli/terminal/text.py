"""Text from elsewhere, made safe to print on a terminal."""

from __future__ import annotations

__all__ = ["visible"]

_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that change the direction of the text after them."""


def visible(text: str) -> str:
    """The text with control characters as pictures of them, so that a row cannot steer the terminal."""
    return "".join(_picture(character) for character in text)


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20 and character != "\n":
        return chr(0x2400 + code)
    return "\ufffd" if 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or character in _BIDI else character
