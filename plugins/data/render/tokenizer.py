"""Owns turning text into token ids and back with a base's own tokenizer; refuses to let plain text become a control token.

A text is encoded as a whole wherever that is exact. Where a cut between prompt and answer would fall inside a token, both sides
are encoded on their own, so that the tokens before the cut are those a server would have had when the answer began.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from tunery.plugins.data.render.token_bounds import TokenBound, byte_alphabet, min_token_count, token_bytes
from tunery.registry.errors import InvalidInput

__all__ = ["Check", "Decoder", "BaseTokenizer", "read_json"]

Check = Callable[[int], None]
"""Told how many tokens a text has at least; raises to end the reading of it."""

_OPEN, _CLOSE, _FIRST = "\ufdd0", "\ufdd1", 0xE000
_MASKED = re.compile(f"{_OPEN}([\ue000-\ue3ff]{{2}}){_CLOSE}")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANCHORS = ("\n", ".", "0", "|", "a")
_LONG = 2_000
"""Characters from which a text is encoded without the interpreter's lock."""
_PIECE = 1 << 16
"""Characters that are encoded in one go, about."""
_NEAR = 200
"""Characters on either side that show whether a text can be taken apart."""
_SEAM = re.compile(r"(?<=[A-Za-z0-9])[ \n](?=[A-Za-z])")
_STEP = 1 << 18
"""Characters that are searched for control tokens in one go."""
_FAR = 10_000
"""Characters that are read again, at most, to see whether a cut falls between two tokens."""


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


class BaseTokenizer:
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
        self._places = {text: index for index, text in enumerate(self.special)}
        self._pattern = re.compile("|".join(map(re.escape, self.special)) or r"(?!)")
        self._bytes: dict[int, bytes] = {}
        self._longest = max(map(len, self.special), default=0)
        self._firsts = {text[:1] for text in self.special}

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

    def find_special(self, text: str, start: int = 0, stop: int | None = None) -> re.Match[str] | None:
        """The first control token in `text[start:stop]`."""
        return self._pattern.search(text, start, len(text) if stop is None else stop)

    def all_special(self, text: str) -> list[re.Match[str]]:
        """Every control token in `text`."""
        return list(self._matches(text))

    def _matches(self, text: str) -> Iterator[re.Match[str]]:
        """Every control token, looked for in steps: a search holds the interpreter's lock until it ends."""
        if not any(first in text for first in self._firsts):
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
        """Put a stand-in where plain text spells a control token; `encode` reads it as the plain text it was."""
        pieces, done = [], 0
        for match in self._matches(text):
            pieces += [text[done : match.start()], self._stand_in(self._places[match[0]])]
            done = match.end()
        return "".join([*pieces, text[done:]]) if pieces else text

    def unmask(self, text: str) -> str:
        """Undo `mask`."""
        return _MASKED.sub(lambda m: self._spelled(m[0], m[1]), text)

    def _stand_in(self, index: int) -> str:
        # Two digits in base 1024: a tokenizer may well have more control tokens than there are private characters.
        return f"{_OPEN}{chr(_FIRST + index // 1024)}{chr(_FIRST + index % 1024)}{_CLOSE}"

    def _spelled(self, whole: str, code: str) -> str:
        index = (ord(code[0]) - _FIRST) * 1024 + ord(code[1]) - _FIRST
        return self.special[index] if index < len(self.special) else whole

    def encode(self, text: str, *, bos: bool = False, check: Check | None = None) -> list[int]:
        """Token ids of `text`; with `bos`, with the tokens the tokenizer puts around a text of its own.

        A text that begins with the beginning-of-sequence token, as one that a chat template wrote does, gets no second one.
        """
        if check:
            check(self.least(text))
        ids = self._read(self._tokenizer, text, check)[0]
        if not bos:
            return ids
        before, after = self._around
        first = self.id_of(self.named.get("bos_token", ""))
        if before and ids and before[-1] == ids[0] == first:
            before = before[:-1]
        return [*before, *ids, *after]

    def least(self, text: str) -> int:
        """How many tokens the text has at least."""
        return min_token_count(text, self.known)

    @cached_property
    def known(self) -> TokenBound | None:
        """What one token can stand for at most, if there is such a thing."""
        return token_bytes(self._tokenizer)

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind a text of its own."""
        plain, whole = (self._tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
        at = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
        return whole[:at], whole[at + len(plain) :]

    def _read(
        self, tokenizer: Tokenizer, text: str, check: Check | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, and where each begins and ends in it; a long one in pieces, with `check` told the ids so far."""
        if len(text) < _LONG:
            encoding = tokenizer.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in self._pieces(tokenizer, text):
            if check:
                check(len(ids))
            # Only the batched call lets go of the interpreter's lock, which everybody else waits for meanwhile.
            encoding = tokenizer.encode_batch([text[start:end]], add_special_tokens=False)[0]
            ids += encoding.ids
            offsets += (
                ((begin + start, stop + start) for begin, stop in encoding.offsets) if start else encoding.offsets
            )
        return ids, offsets

    def _pieces(self, tokenizer: Tokenizer, text: str) -> Iterator[tuple[int, int]]:
        """Stretches of a long text whose ids, one after the other, are those of the whole."""
        start = 0
        while len(text) - start > 2 * _PIECE and (end := self._seam(tokenizer, text, start + _PIECE)):
            yield start, end
            start = end
        yield start, len(text)

    def _seam(self, tokenizer: Tokenizer, text: str, at: int) -> int | None:
        """A place soon after `at` between two words where tokens begin anew, if the tokenizer has such places."""
        for match in islice(_SEAM.finditer(text, at, at + _PIECE), 3):
            left, right = text[match.start() - _NEAR : match.start()], text[match.start() : match.start() + _NEAR]
            apart = [number for side in (left, right) for number in self._read(tokenizer, side)[0]]
            if apart == self._read(tokenizer, left + right)[0]:
                return match.start()
        return None

    def encode_cut(self, text: str, cuts: Sequence[int], check: Check | None = None) -> tuple[list[int], list[int]]:
        """Ids of `text` and, for each character position of the ascending `cuts`, how many ids lie before it."""
        if check:
            check(self.least(text))
        ids: list[int] = []
        places = [0] * len(cuts)
        for start, end, plain in self._regions(text):
            inside = [(number, cut - start) for number, cut in enumerate(cuts) if start < cut <= end]
            own = [cut for _, cut in inside]
            found, at = (
                self._plain_region(text[start:end], own, first=start == 0)
                if plain
                else self._region(text[start:end], own, check)
            )
            for (number, _), place in zip(inside, at, strict=True):
                places[number] = len(ids) + place
            ids += found
        return ids, places

    def _regions(self, text: str) -> Iterator[tuple[int, int, bool]]:
        """Stretches of the text, and whether plain text in them spells a control token; control tokens are what separates them."""
        if _OPEN not in text:
            yield 0, len(text), False
            return
        done = at = 0
        for match in [*self._matches(text), None]:
            edge = match.start() if match else len(text)
            if _OPEN in text[at:edge] and _MASKED.search(text, at, edge):
                if done < at:
                    yield done, at, False
                yield at, edge, True
                done = edge
            at = match.end() if match else edge
        if done < len(text):
            yield done, len(text), False

    def _plain_region(self, text: str, cuts: Sequence[int], *, first: bool) -> tuple[list[int], list[int]]:
        """Text without control tokens that spells some, in pieces from cut to cut."""
        ids: list[int] = []
        places = []
        for start, end in pairwise([0, *cuts, len(text)]):
            piece = self.unmask(text[start:end])
            ids += self._read(self._plain, piece)[0] if first and not start else self._continued(piece, self._plain)[0]
            places.append(len(ids))
        return ids, places[: len(cuts)]

    def _region(self, text: str, cuts: Sequence[int], check: Check | None = None) -> tuple[list[int], list[int]]:
        ids, offsets = self._read(self._tokenizer, text, check)
        found = self._clean(text, cuts, ids, offsets) if cuts else []
        places = [place for place in found if place is not None]
        if len(places) == len(cuts):
            return ids, places
        split = [cut for cut, place in zip(cuts, found, strict=True) if place is None]
        ids, places = [], []
        for start, end in pairwise([0, *split, *([len(text)] if split[-1] < len(text) else [])]):
            piece, ends = self._continued(text[start:end], self._tokenizer) if start else self._alone(text[:end])
            places += [
                len(ids) + (len(piece) if cut == end else bisect_right(ends, cut - start))
                for cut in cuts
                if start < cut <= end
            ]
            ids += piece
        return ids, places

    def _clean(
        self, text: str, cuts: Sequence[int], ids: Sequence[int], offsets: Sequence[tuple[int, int]]
    ) -> list[int | None]:
        """For each cut the ids before it if the text up to it encodes to just those, else None.

        Looks back to the last control token, or to the last clean cut where that is far.
        """
        found: list[int | None] = []
        token, control, clean = 0, (0, 0), (0, 0)
        for cut in cuts:
            if cut == len(text):
                found.append(len(ids))
                continue
            while token < len(ids) and offsets[token][1] <= cut:
                if ids[token] in self.special_ids:
                    control = offsets[token][0], token
                token += 1
            near = cut - control[0] <= _FAR or clean <= control
            start, anchor = control if near else clean
            before = self.encode(text[start:cut]) if near else self._continued(text[start:cut], self._tokenizer)[0]
            is_clean = ids[anchor : anchor + len(before)] == before
            found.append(anchor + len(before) if is_clean else None)
            clean = (cut, anchor + len(before)) if is_clean else clean
        return found

    def _alone(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a text, and where each ends in it."""
        ids, offsets = self._read(self._tokenizer, text)
        return ids, [end for _, end in offsets]

    def _continued(self, text: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """Ids of a text that goes on after another, without the mark some tokenizers put before a text's first word."""
        for anchor in _ANCHORS:
            alone = tokenizer.encode(anchor, add_special_tokens=False).ids
            joined, offsets = self._read(tokenizer, anchor + text)
            ids = joined[len(alone) :]
            if joined[: len(alone)] == alone and self.decode(ids, skip_special=False).strip() == text.strip():
                return ids, [end - len(anchor) for _, end in offsets[len(alone) :]]
        ids, offsets = self._read(tokenizer, text)
        return ids, [end for _, end in offsets]

    def bytes_of(self, number: int) -> bytes:
        """The exact bytes one token stands for, which may be part of a character only."""
        if (known := self._bytes.get(number)) is None:
            known = self._bytes[number] = self._bytes_of(number)
        return known

    def _bytes_of(self, number: int) -> bytes:
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
        return byte_alphabet()

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text


class Decoder:
    """Turns token ids into text one at a time, holding a character back until all its bytes are there."""

    # A UTF-8 character has at most four bytes, so more waiting tokens than this are not the start of one.
    _PATIENCE = 8

    def __init__(self, tokens: BaseTokenizer, *, skip_special: bool = True) -> None:
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
