"""How similar two texts are: metrics with exact definitions, each from 0 to 1, and 1 for equal texts.

    fuzzy_match      Indel similarity of characters, 2 LCS / (a + b), as rapidfuzz's `ratio`
    bleu             up to four words, add-one smoothing above one (Lin and Och 2004), with the brevity penalty
    gleu             the smaller of precision and recall of all runs of one to four words (Wu et al. 2016)
    rouge_1 … 5      F1 of runs of that many words (Lin 2004)
    rouge_l          F1 of the longest common subsequence of words

Words of rouge are runs of letters and digits in lower case; bleu and gleu keep case, and punctuation as words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from tunery.registry.errors import InvalidInput

__all__ = ["MAX_TEXT", "METRICS", "common_subsequence", "similarity"]

MAX_TEXT = 100_000
"""Characters of a text that is compared."""
ORDER = 4

_WORD, _TOKEN = re.compile(r"[^\W_]+"), re.compile(r"\w+|[^\w\s]")
Grams = Counter[tuple[str, ...]]


def similarity(metric: str, text: str, reference: str) -> float:
    """The similarity of `text` to `reference`; raise InvalidInput for texts too long to compare."""
    longest = max(len(text), len(reference))
    if longest > MAX_TEXT:
        raise InvalidInput(f"a text of {longest} characters is too long to compare; the limit is {MAX_TEXT}")
    return 1.0 if text == reference else METRICS[metric](text, reference)


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, in one word operation for 64 pairs (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << at
    everywhere = (1 << len(one)) - 1
    unmatched = everywhere
    for item in other:
        found = unmatched & places.get(item, 0)
        unmatched = ((unmatched + found) | (unmatched - found)) & everywhere
    return len(one) - unmatched.bit_count()


def _fuzzy_match(text: str, reference: str) -> float:
    return _ratio(2 * common_subsequence(text, reference), len(text) + len(reference))


def _bleu(text: str, reference: str) -> float:
    words, expected = _TOKEN.findall(text), _TOKEN.findall(reference)
    if not words or not expected:
        return float(words == expected)
    logs = 0.0
    for order in range(1, ORDER + 1):
        own, other = _grams(words, order), _grams(expected, order)
        smooth = int(order > 1)
        matches, total = (own & other).total() + smooth, own.total() + smooth
        if not matches:
            return 0.0
        logs += math.log(matches / total) / ORDER
    return min(1.0, math.exp(min(0.0, 1 - len(expected) / len(words)) + logs))


def _gleu(text: str, reference: str) -> float:
    words, expected = _TOKEN.findall(text), _TOKEN.findall(reference)
    own, other = _all_grams(words), _all_grams(expected)
    if not own or not other:
        return float(own == other)
    return (own & other).total() / max(own.total(), other.total())


def _rouge(order: int) -> Callable[[str, str], float]:
    def metric(text: str, reference: str) -> float:
        own, other = (_grams(_WORD.findall(each.lower()), order) for each in (text, reference))
        return _ratio(2 * (own & other).total(), own.total() + other.total())

    return metric


def _rouge_l(text: str, reference: str) -> float:
    own, other = _WORD.findall(text.lower()), _WORD.findall(reference.lower())
    return _ratio(2 * common_subsequence(own, other), len(own) + len(other))


def _grams(words: Sequence[str], order: int) -> Grams:
    """The runs of that many words."""
    return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))


def _all_grams(words: Sequence[str]) -> Grams:
    return sum((_grams(words, order) for order in range(1, ORDER + 1)), Counter())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": _fuzzy_match,
    "bleu": _bleu,
    "gleu": _gleu,
    **{f"rouge_{order}": _rouge(order) for order in range(1, 6)},
    "rouge_l": _rouge_l,
}
"""The metrics by OpenAI's names."""
