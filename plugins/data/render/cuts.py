"""Encode a text so that it can be cut between prompt and answer.

A text is encoded as a whole wherever that is exact. Where a cut would fall inside a token, both sides are encoded on
their own, so that the tokens before the cut are those that a server would have had when the answer began.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from tunery.plugins.data.render.tokenizer import BaseTokenizer, LengthCheck

__all__ = ["encode_with_cuts"]

_FAR = 10_000
"""Characters that are encoded again, at most, to see whether a cut falls between two tokens."""
_ANCHORS = ("\n", ".", "0", "|", "a")
"""Texts to put in front of one that continues another; the first that stays a token of its own is used."""

Encoded = tuple[list[int], list[int]]
"""Token ids; and either how many of them lie before each cut, or where each ends in the text."""


def encode_with_cuts(
    tokenizer: BaseTokenizer, text: str, cuts: Sequence[int], check_length: LengthCheck | None = None
) -> Encoded:
    """Ids of a masked text and, for each character position of the ascending `cuts`, how many ids lie before it."""
    if check_length:
        check_length(tokenizer.min_length(text))
    ids: list[int] = []
    counts = [0] * len(cuts)
    for start, end, masked in tokenizer.special.masked_spans(text):
        inside = [(number, cut - start) for number, cut in enumerate(cuts) if start < cut <= end]
        local = [cut for _, cut in inside]
        if masked:
            span_ids, before = _encode_masked(tokenizer, text[start:end], local, first=start == 0)
        else:
            span_ids, before = _encode_span(tokenizer, text[start:end], local, check_length)
        for (number, _), count in zip(inside, before, strict=True):
            counts[number] = len(ids) + count
        ids += span_ids
    return ids, counts


def _encode_masked(tokenizer: BaseTokenizer, text: str, cuts: Sequence[int], *, first: bool) -> Encoded:
    """A text that spells control tokens without holding any, encoded in pieces from cut to cut."""
    ids: list[int] = []
    counts = []
    for start, end in pairwise([0, *cuts, len(text)]):
        piece = tokenizer.special.unmask(text[start:end])
        if first and not start:
            ids += tokenizer.encode_with_offsets(piece, plain=True)[0]
        else:
            ids += _encode_continued(tokenizer, piece, plain=True)[0]
        counts.append(len(ids))
    return ids, counts[: len(cuts)]


def _encode_span(tokenizer: BaseTokenizer, text: str, cuts: Sequence[int], check_length: LengthCheck | None) -> Encoded:
    """A text encoded as a whole where all cuts are clean, else in pieces between the cuts that are not."""
    ids, offsets = tokenizer.encode_with_offsets(text, check_length=check_length)
    counts = _count_before(tokenizer, text, cuts, ids, offsets) if cuts else []
    clean = [count for count in counts if count is not None]
    if len(clean) == len(cuts):
        return ids, clean
    split = [cut for cut, count in zip(cuts, counts, strict=True) if count is None]
    ids, places = [], []
    for start, end in pairwise([0, *split, *([len(text)] if split[-1] < len(text) else [])]):
        piece, ends = _encode_continued(tokenizer, text[start:end]) if start else _encode_first(tokenizer, text[:end])
        places += [
            len(ids) + (len(piece) if cut == end else bisect_right(ends, cut - start))
            for cut in cuts
            if start < cut <= end
        ]
        ids += piece
    return ids, places


def _count_before(
    tokenizer: BaseTokenizer,
    text: str,
    cuts: Sequence[int],
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
) -> list[int | None]:
    """For each cut the number of ids before it if the text up to it encodes to exactly those ids, else None.

    Encodes again from the last control token, or from the last clean cut where that token is far back.
    """
    counts: list[int | None] = []
    token, control, clean = 0, (0, 0), (0, 0)
    for cut in cuts:
        if cut == len(text):
            counts.append(len(ids))
            continue
        while token < len(ids) and offsets[token][1] <= cut:
            if ids[token] in tokenizer.special_ids:
                control = offsets[token][0], token
            token += 1
        near = cut - control[0] <= _FAR or clean <= control
        start, anchor = control if near else clean
        prefix = text[start:cut]
        before = tokenizer.encode(prefix) if near else _encode_continued(tokenizer, prefix)[0]
        is_clean = ids[anchor : anchor + len(before)] == before
        counts.append(anchor + len(before) if is_clean else None)
        clean = (cut, anchor + len(before)) if is_clean else clean
    return counts


def _encode_first(tokenizer: BaseTokenizer, text: str) -> Encoded:
    """Ids of a text, and where each ends in it."""
    ids, offsets = tokenizer.encode_with_offsets(text)
    return ids, [end for _, end in offsets]


def _encode_continued(tokenizer: BaseTokenizer, text: str, *, plain: bool = False) -> Encoded:
    """Ids of a text that continues another, without the mark that some tokenizers put before a text's first word."""
    for anchor in _ANCHORS:
        alone = tokenizer.encode_with_offsets(anchor, plain=plain)[0]
        joined, offsets = tokenizer.encode_with_offsets(anchor + text, plain=plain)
        ids = joined[len(alone) :]
        if joined[: len(alone)] == alone and tokenizer.decode(ids, skip_special=False).strip() == text.strip():
            return ids, [end - len(anchor) for _, end in offsets[len(alone) :]]
    ids, offsets = tokenizer.encode_with_offsets(text, plain=plain)
    return ids, [end for _, end in offsets]
