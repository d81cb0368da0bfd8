"""Owns turning text into token ids and back with a base's own tokenizer; refuses to let plain text become a control token.

A text is encoded as a whole wherever that is exact. Where a cut between prompt and answer would fall inside a token, both sides
are encoded on their own, so that the tokens before the cut are those a server would have had when the answer began.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from tunery.registry.errors import InvalidInput

__all__ = ["Decoder", "Tokens", "read_json"]

_OPEN, _CLOSE, _FIRST = "\ufdd0", "\ufdd1", 0xE000
_MASKED = re.compile(f"{_OPEN}([\ue000-\ue3ff]{{2}}){_CLOSE}")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANCHORS = ("\n", ".", "0", "|", "a")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or {} where there is none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(
            f"{path.name} of the base is not JSON ({error}); fetch the base again", code="bad_base"
        ) from error
    return value if isinstance(value, dict) else {}


class Tokens:
    """A base's tokenizer: `special` are the texts of its control tokens, longest first; `named` are bos_token and so on."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InvalidInput(f"the base in {folder} has no tokenizer.json; add it again", code="bad_base")
        self.settings = read_json(folder / "tokenizer_config.json")
        self.named = _named(self.settings, read_json(folder / "special_tokens_map.json"))
        self._tokenizer = self._open(path)
        self._plain = self._open(path)
        self._plain.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = {number: token.content for number, token in added.items() if token.special}
        self.special = sorted(self.special_ids.values(), key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, self.special)) or r"(?!)")

    def _open(self, path: Path) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        control = [t for t in self.named.values() if t not in known and tokenizer.token_to_id(t) is not None]
        tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
        return tokenizer

    @property
    def size(self) -> int:
        """How many token ids there are."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def id_of(self, text: str) -> int | None:
        """The id of one token, by its exact text."""
        number: int | None = self._tokenizer.token_to_id(text)
        return number

    def find_special(self, text: str, start: int = 0) -> re.Match[str] | None:
        """The first control token in `text` from `start` on."""
        return self._pattern.search(text, start)

    def all_special(self, text: str) -> list[re.Match[str]]:
        """Every control token in `text`."""
        return list(self._pattern.finditer(text))

    def mask(self, text: str) -> str:
        """Put a stand-in where plain text spells a control token; `encode` reads it as the plain text it was."""
        return self._pattern.sub(lambda match: self._stand_in(self.special.index(match[0])), text)

    def unmask(self, text: str) -> str:
        """Undo `mask`."""
        return _MASKED.sub(lambda m: self._spelled(m[0], m[1]), text)

    def _stand_in(self, index: int) -> str:
        # Two digits in base 1024: a tokenizer may well have more control tokens than there are private characters.
        return f"{_OPEN}{chr(_FIRST + index // 1024)}{chr(_FIRST + index % 1024)}{_CLOSE}"

    def _spelled(self, whole: str, code: str) -> str:
        index = (ord(code[0]) - _FIRST) * 1024 + ord(code[1]) - _FIRST
        return self.special[index] if index < len(self.special) else whole

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Token ids of `text`; with `bos`, with the tokens the tokenizer puts around a text of its own."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=bos).ids
        return ids

    def encode_cut(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
        """Ids of `text` and, for each character position of the ascending `cuts`, how many ids lie before it."""
        if _MASKED.search(text):
            return self._in_pieces(text, cuts, cuts)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        places = [self._place(encoding, text, cut) for cut in cuts]
        found = [place for place in places if place is not None]
        if len(found) == len(cuts):
            return encoding.ids, found
        unclean = [cut for cut, place in zip(cuts, places, strict=True) if place is None]
        return self._in_pieces(text, cuts, unclean)

    def _place(self, encoding: Any, text: str, cut: int) -> int | None:
        """Ids before `cut` if the text up to it encodes to just those, else None. Looks back only to a control token."""
        if cut in (0, len(text)):
            return 0 if cut == 0 else len(encoding.ids)
        start, anchor = 0, 0
        upto = encoding.char_to_token(cut - 1)
        index = len(encoding.ids) - 1 if upto is None else upto
        for number in range(min(index, len(encoding.ids) - 1), -1, -1):
            if encoding.ids[number] in self.special_ids and encoding.offsets[number][1] <= cut:
                start, anchor = encoding.offsets[number][0], number
                break
        before = self.encode(text[start:cut])
        return anchor + len(before) if encoding.ids[anchor : anchor + len(before)] == before else None

    def _in_pieces(self, text: str, cuts: Sequence[int], split: Sequence[int]) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        places: dict[int, int] = {}
        edges = sorted({0, *split, len(text)})
        for start, end in pairwise(edges):
            inside = [cut - start for cut in cuts if start < cut <= end]
            piece, at = self._piece(text[start:end], inside, first=start == 0)
            places.update({cut + start: len(ids) + place for cut, place in zip(inside, at, strict=True)})
            ids += piece
        places[0] = 0
        return ids, [places[cut] for cut in cuts]

    def _piece(self, text: str, cuts: Sequence[int], *, first: bool) -> tuple[list[int], list[int]]:
        if _MASKED.search(text):
            ids = self._masked_piece(text, first=first)
            return ids, [len(ids)] * len(cuts)
        ids = self.encode(text) if first else self._continued(text)
        return ids, [len(ids) if cut == len(text) else len(self.encode(text[:cut])) for cut in cuts]

    def _masked_piece(self, text: str, *, first: bool) -> list[int]:
        """Encode control tokens as themselves and everything between them as plain text."""
        ids: list[int] = []
        done = 0
        for match in [*self._pattern.finditer(text), None]:
            plain = self.unmask(text[done : match.start() if match else len(text)])
            if plain:
                ids += self._plain.encode(plain, add_special_tokens=False).ids
            if match:
                ids += self.encode(match[0])
                done = match.end()
        return ids

    def _continued(self, text: str) -> list[int]:
        """Ids of a text that goes on after another, without the mark some tokenizers put before a text's first word."""
        for anchor in _ANCHORS:
            alone = self.encode(anchor)
            joined = self.encode(anchor + text)
            if (
                joined[: len(alone)] == alone
                and self.decode(joined[len(alone) :], skip_special=False).strip() == text.strip()
            ):
                return joined[len(alone) :]
        return self.encode(text)

    def bytes_of(self, number: int) -> bytes:
        """The exact bytes one token stands for, which may be part of a character only."""
        if number in self.special_ids:
            return self.special_ids[number].encode()
        piece: str = self._tokenizer.id_to_token(number) or ""
        if byte := _BYTE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        if self._byte_level and all(character in self._byte_level for character in piece):
            return bytes(self._byte_level[character] for character in piece)
        return piece.replace("\u2581", " ").encode() if "\u2581" in piece else self.decode([number]).encode()

    @cached_property
    def _byte_level(self) -> dict[str, int]:
        """Which byte each character of a piece stands for; empty when pieces are written as plain text."""
        probe = self.encode("\u00e9")
        plain = any("\u00e9" in (self._tokenizer.id_to_token(number) or "") for number in probe)
        if plain or any(_BYTE.fullmatch(self._tokenizer.id_to_token(number) or "") for number in probe):
            return {}
        # GPT-2's alphabet: printable bytes are themselves, the others follow from U+0100 on.
        themselves = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in themselves]
        return {chr(byte): byte for byte in themselves} | {chr(256 + at): byte for at, byte in enumerate(others)}

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text


class Decoder:
    """Turns token ids into text one at a time, holding a character back until all its bytes are there."""

    # A UTF-8 character has at most four bytes, so more waiting tokens than this are not the start of one.
    _PATIENCE = 8

    def __init__(self, tokens: Tokens, *, skip_special: bool = True) -> None:
        self._tokens, self._skip = tokens, skip_special
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """The text that became certain with `token`, often one word, sometimes nothing."""
        self._ids.append(token)
        text = self._text(self._ids)
        if text.endswith("\ufffd") and len(self._ids) - self._shown < self._PATIENCE:
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """What was held back; call it once at the end."""
        return self._emit(self._text(self._ids)) if len(self._ids) > self._shown else ""

    def _emit(self, text: str) -> str:
        # The tokens already shown stay in front, because decoders treat the first token of a text differently.
        before = self._text(self._ids[: self._shown])
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return text[len(before) :]

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokens.decode(ids, skip_special=self._skip)


def _named(*sources: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like, as text, from the files that may hold them; the first wins."""
    named: dict[str, str] = {}
    for source in sources:
        for key, value in source.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                named.setdefault(key, text)
    return named
