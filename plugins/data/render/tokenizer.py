"""A base's own tokenizer: text to token ids and back, and the ids of its control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from tunery.plugins.data.render.special_tokens import SpecialTokens
from tunery.plugins.data.render.token_bounds import TokenBound, byte_alphabet, min_token_count, token_bound
from tunery.registry.errors import InvalidInput

__all__ = ["BaseTokenizer", "LengthCheck", "read_json"]

LengthCheck = Callable[[int], None]
"""Called with a lower bound of a text's length in tokens, before and while it is encoded; raises to stop."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LONG = 2_000
"""Characters from which a text is encoded without the interpreter's lock."""
_PIECE = 1 << 16
"""Characters that are encoded in one go, about."""
_CONTEXT = 200
"""Characters on either side of a seam that show whether a text can be taken apart there."""
_SEAM = re.compile(r"(?<=[A-Za-z0-9])[ \n](?=[A-Za-z])")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a base's file, {} where there is none. Raises InvalidInput where it is not JSON."""
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
    """The tokenizer in a base's folder.

    `special` are its control tokens, `special_ids` their texts by id; `named` are the texts of bos_token, eos_token and
    so on. Raises InvalidInput where the folder has no tokenizer.json.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InvalidInput(f"the base in {folder} has no tokenizer.json; add it again", code="bad_base")
        self.settings = read_json(folder / "tokenizer_config.json")
        self.named = _named_tokens(self.settings, read_json(folder / "special_tokens_map.json"))
        self._tokenizer = self._open(path)
        self._plain_tokenizer = self._open(path)
        self._plain_tokenizer.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = {number: token.content for number, token in added.items() if token.special}
        self.special = SpecialTokens(self.special_ids.values())
        self._token_bytes: dict[int, bytes] = {}

    def _open(self, path: Path) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        control = [t for t in self.named.values() if t not in added and tokenizer.token_to_id(t) is not None]
        tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
        return tokenizer

    @property
    def size(self) -> int:
        """Number of token ids."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def id_of(self, text: str) -> int | None:
        """The id of the token with exactly this text."""
        number: int | None = self._tokenizer.token_to_id(text)
        return number

    # -- text to ids ---------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, bos: bool = False, check_length: LengthCheck | None = None) -> list[int]:
        """Token ids of `text`; with `bos`, including the tokens that the tokenizer puts around a whole text.

        A text that already begins with the beginning-of-sequence token, as one from a chat template does, gets no
        second one.
        """
        if check_length:
            check_length(self.min_length(text))
        ids = self.encode_with_offsets(text, check_length=check_length)[0]
        if not bos:
            return ids
        before, after = self._surrounding
        first = self.id_of(self.named.get("bos_token", ""))
        if before and ids and before[-1] == ids[0] == first:
            before = before[:-1]
        return [*before, *ids, *after]

    def encode_with_offsets(
        self, text: str, *, plain: bool = False, check_length: LengthCheck | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, and the characters (start, end) of each.

        With `plain`, control tokens that the text spells are encoded as plain text. A long text is encoded in pieces,
        and `check_length` is called between them.
        """
        tokenizer = self._plain_tokenizer if plain else self._tokenizer
        if len(text) < _LONG:
            encoding = tokenizer.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in self._pieces(text, plain):
            if check_length:
                check_length(len(ids))
            # Only the batched call releases the interpreter's lock, which every other thread waits for meanwhile.
            encoding = tokenizer.encode_batch([text[start:end]], add_special_tokens=False)[0]
            ids += encoding.ids
            offsets += (
                ((begin + start, stop + start) for begin, stop in encoding.offsets) if start else encoding.offsets
            )
        return ids, offsets

    def min_length(self, text: str) -> int:
        """A lower bound of the text's length in tokens, found without encoding it."""
        return min_token_count(text, self.bound)

    @cached_property
    def bound(self) -> TokenBound | None:
        """What one token can stand for at most; None where there is no such bound."""
        return token_bound(self._tokenizer)

    @cached_property
    def _surrounding(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a whole text."""
        plain, whole = (self._tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
        at = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
        return whole[:at], whole[at + len(plain) :]

    def _pieces(self, text: str, plain: bool) -> Iterator[tuple[int, int]]:
        """Stretches of a long text whose ids, one after the other, are those of the whole."""
        start = 0
        while len(text) - start > 2 * _PIECE and (end := self._seam(text, start + _PIECE, plain)):
            yield start, end
            start = end
        yield start, len(text)

    def _seam(self, text: str, at: int, plain: bool) -> int | None:
        """A place soon after `at`, between two words, where tokens begin anew, if the tokenizer has such places."""
        for match in islice(_SEAM.finditer(text, at, at + _PIECE), 3):
            middle = match.start()
            left, right = text[middle - _CONTEXT : middle], text[middle : middle + _CONTEXT]
            apart = [number for side in (left, right) for number in self.encode_with_offsets(side, plain=plain)[0]]
            if apart == self.encode_with_offsets(left + right, plain=plain)[0]:
                return middle
        return None

    # -- ids to text ---------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def bytes_of(self, number: int) -> bytes:
        """The exact bytes that a token stands for, which may be part of a character only."""
        if (value := self._token_bytes.get(number)) is None:
            value = self._token_bytes[number] = self._bytes_of(number)
        return value

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
        """Which byte each character of a token stands for; empty where tokens are written as plain text."""
        probe = self.encode("\u00e9")
        plain = any("\u00e9" in (self._tokenizer.id_to_token(number) or "") for number in probe)
        if plain or any(_BYTE.fullmatch(self._tokenizer.id_to_token(number) or "") for number in probe):
            return {}
        return byte_alphabet()


def _named_tokens(*sources: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like, as text, from the files that may define them; the first one wins."""
    named: dict[str, str] = {}
    for source in sources:
        for key, value in source.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                named.setdefault(key, text)
    return named
