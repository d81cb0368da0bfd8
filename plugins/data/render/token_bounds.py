"""A lower bound of a text's length in tokens, from its bytes alone, so that a text that cannot fit is refused before it
is encoded."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from tokenizers import Tokenizer

__all__ = ["TokenBound", "byte_alphabet", "min_token_count", "token_bound"]

_STEP = 1 << 18

_SHRINKING = {"NFC": 4, "NFKC": 12, "NFD": 1, "NFKD": 12, "Lowercase": 4, "Prepend": 1, "ByteLevel": 1, "Replace": 1}
"""How many bytes of a text a normalizer may turn into one, by its type."""
_KEEPING = {"ByteLevel", "Metaspace", "Split", "Digits", "UnicodeScripts"}
"""Pre-tokenizers that split a text without dropping any of it."""


class TokenBound(msgspec.Struct, frozen=True):
    """A token stands for at most `longest` bytes of a text; bytes in `dropped` may belong to no token."""

    longest: int
    dropped: bytes = b""


def min_token_count(text: str, bound: TokenBound | None) -> int:
    """The fewest tokens that `text` can have; 0 without a bound."""
    if bound is None:
        return 0
    # In steps, since each holds the interpreter's lock.
    parts = (text[at : at + _STEP].encode(errors="replace") for at in range(0, len(text), _STEP))
    size = sum(len(part.translate(None, bound.dropped)) for part in parts)
    return -(-size // bound.longest)


def token_bound(tokenizer: Tokenizer) -> TokenBound | None:
    """What a token can stand for at most; None where a tokenizer may drop or merge any number of bytes."""
    normal = _shrinking(_state(tokenizer.normalizer))
    if normal is None or not _keeps(_state(tokenizer.pre_tokenizer)) or _strips(tokenizer):
        return None
    byte_level = _byte_level(_state(tokenizer.pre_tokenizer), _state(tokenizer.normalizer))
    if not byte_level and not getattr(tokenizer.model, "byte_fallback", False):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    dropped = bytes(byte for letter, byte in byte_alphabet().items() if letter not in vocabulary) if byte_level else b""
    pieces = max((len(piece) if byte_level else len(piece.encode()) for piece in vocabulary), default=1)
    added = (len(token.content.encode()) for token in tokenizer.get_added_tokens_decoder().values())
    if dropped and normal > 1:
        return None  # what is normalized may become what is dropped
    return TokenBound(max(pieces, *added, 1) * normal, dropped)


def byte_alphabet() -> dict[str, int]:
    """The byte of each letter of GPT-2's byte-level alphabet: printable bytes are themselves, the others follow from
    U+0100."""
    themselves = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in themselves]
    return {chr(byte): byte for byte in themselves} | {chr(256 + at): byte for at, byte in enumerate(others)}


def _state(part: Any) -> list[dict[str, Any]]:
    """The descriptions of the parts of a normalizer or pre-tokenizer."""
    if part is None:
        return []
    state: dict[str, Any] = json.loads(part.__getstate__())
    return state.get("normalizers") or state.get("pretokenizers") or [state]


def _shrinking(parts: list[dict[str, Any]]) -> int | None:
    factor = 1
    for part in parts:
        shrinking = _SHRINKING.get(part["type"])
        if shrinking is None or (part["type"] == "Replace" and part.get("pattern") != {"String": " "}):
            return None
        if part["type"] == "Replace" and not part.get("content"):
            return None
        factor *= shrinking
    return factor


def _keeps(parts: list[dict[str, Any]]) -> bool:
    return all(part["type"] in _KEEPING and part.get("behavior") != "Removed" for part in parts)


def _byte_level(*parts: list[dict[str, Any]]) -> bool:
    return any(part["type"] == "ByteLevel" for group in parts for part in group)


def _strips(tokenizer: Tokenizer) -> bool:
    """Whether an added token swallows the white space around it, however much there is."""
    return any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values())
