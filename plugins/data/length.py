"""How many tokens a text has at least, from its bytes alone, so that a text that cannot fit is refused before it is tokenized."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

__all__ = ["least_tokens", "longest_token"]

_SHRINKING = {"NFC": 4, "NFKC": 12, "NFD": 1, "NFKD": 12, "Lowercase": 4, "Prepend": 1, "ByteLevel": 1, "Replace": 1}
"""How many bytes of a text a normalizer makes one of, at most."""
_KEEPING = {"ByteLevel", "Metaspace", "Split", "Digits", "UnicodeScripts"}
"""What splits a text without dropping any of it."""


def least_tokens(text: str, longest: int | None) -> int:
    """The fewest tokens that `text` can be where a token stands for `longest` bytes at most; 0 where nothing is known."""
    if longest is None:
        return 0
    # A character is one to four bytes, which mostly decides; counting them needs a copy.
    size = len(text) if text.isascii() else len(text.encode(errors="replace"))
    return -(-size // longest)


def longest_token(tokenizer: Tokenizer) -> int | None:
    """The most bytes of a text that one token can stand for; None where a tokenizer may drop or merge any number of them."""
    normal = _shrinking(_state(tokenizer.normalizer))
    if normal is None or not _keeps(_state(tokenizer.pre_tokenizer)) or _strips(tokenizer):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    byte_level = _byte_level(_state(tokenizer.pre_tokenizer), _state(tokenizer.normalizer))
    if byte_level and len({piece for piece in vocabulary if len(piece) == 1}) < 256:
        return None
    if not byte_level and not getattr(tokenizer.model, "byte_fallback", False):
        return None
    pieces = max((len(piece) if byte_level else len(piece.encode()) for piece in vocabulary), default=1)
    added = (len(token.content.encode()) for token in tokenizer.get_added_tokens_decoder().values())
    return max(pieces, *added, 1) * normal


def _state(part: Any) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as its parts, each as its description."""
    if part is None:
        return []
    found: dict[str, Any] = json.loads(part.__getstate__())
    return found.get("normalizers") or found.get("pretokenizers") or [found]


def _shrinking(parts: list[dict[str, Any]]) -> int | None:
    factor = 1
    for part in parts:
        own = _SHRINKING.get(part["type"])
        if own is None or (part["type"] == "Replace" and part.get("pattern") != {"String": " "}):
            return None
        if part["type"] == "Replace" and not part.get("content"):
            return None
        factor *= own
    return factor


def _keeps(parts: list[dict[str, Any]]) -> bool:
    return all(part["type"] in _KEEPING and part.get("behavior") != "Removed" for part in parts)


def _byte_level(*parts: list[dict[str, Any]]) -> bool:
    return any(part["type"] == "ByteLevel" for group in parts for part in group)


def _strips(tokenizer: Tokenizer) -> bool:
    """Whether an added token takes in the white space around it, however much there is."""
    return any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values())
