"""The rule `diversity`: whether the answers differ enough to learn more than a phrase from; measured on a sample.

distinct-n is the share of distinct n-grams of words among all of them (Li et al., "A diversity-promoting objective
function", 2016).
"""

from __future__ import annotations

import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from tunery.plugins.data.checks.check import Check, CheckContext, Fault
from tunery.plugins.data.checks.parsed_record import Location, ParsedRecord
from tunery.plugins.hookspecs import Severity

__all__ = ["Diversity"]

SAMPLE, CLIP = 2000, 2000  # answers, characters of each
_REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable|not able)|I (?:can(?:no|')t|won't) (?:help|assist|provide|answer|do that)|"
    r"as an AI\b|I must decline|against my (?:guidelines|programming))",
    re.IGNORECASE,
)
_FEW_ROWS = 50
_OPENING_SHARE, _ANSWER_SHARE, _REFUSAL_SHARE, _COMPRESSION = 0.3, 0.1, 0.1, 10.0
_SENTENCE = 4
"""Words from which an answer is a sentence rather than a label."""


class Diversity(Check):
    """Keeps a uniform sample of the answers (reservoir sampling), the same for the same files."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._random = random.Random(0)  # noqa: S311 - a sample, not a secret
        self._sample: list[str] = []
        self._rows = 0

    def summarize(self, record: ParsedRecord) -> str | None:
        return record.answer[:CLIP] or None if not record.location.held_out else None

    def compare(self, location: Location, summary: str) -> Iterable[Fault]:
        self._rows += 1
        if len(self._sample) < SAMPLE:
            self._sample.append(summary)
        elif (at := self._random.randrange(self._rows)) < SAMPLE:
            self._sample[at] = summary
        return ()

    def statistics(self) -> dict[str, Any]:
        return {"diversity": self._figures} if self._sample else {}

    @cached_property
    def _figures(self) -> dict[str, Any]:
        """Figures of the sample, computed once, after the last record."""
        words = [answer.split() for answer in self._sample]
        whole = "\n".join(self._sample).encode("utf-8", "surrogatepass")
        whole_answers = Counter(" ".join(each) for each in words)
        openings = Counter(" ".join(each[:4]) for each in words if each)
        return {
            "answers": self._rows,
            "sampled": len(self._sample),
            **{f"distinct_{n}": _distinct(words, n) for n in (1, 2, 3)},
            "compression_ratio": round(len(whole) / len(zlib.compress(whole)), 2),
            "top_openings": [
                {"text": text, "share": round(count / len(self._sample), 4)}
                for text, count in sorted(openings.items(), key=lambda pair: (-pair[1], pair[0]))[:5]
            ],
            "top_answers": [
                {"text": text[:60], "words": len(text.split()), "share": round(count / len(self._sample), 4)}
                for text, count in sorted(whole_answers.items(), key=lambda pair: (-pair[1], pair[0]))[:5]
                if count > 1
            ],
            "refusals": round(sum(map(_is_refusal, self._sample)) / len(self._sample), 4),
        }

    def check_dataset(self) -> Iterable[Fault]:
        if len(self._sample) < _FEW_ROWS:
            return
        figures = self._figures
        for top in figures["top_openings"][:1]:
            if top["share"] > _OPENING_SHARE:
                message = f"{top['share']:.0%} of the answers begin with {top['text']!r}"
                yield Fault("$", message, "vary them, unless this is intended")
        for top in figures["top_answers"][:1]:
            if top["share"] > _ANSWER_SHARE:
                message = f"{top['share']:.0%} of the answers are {top['text']!r}"
                # Labels are few by nature; whole sentences are not.
                severity: Severity = "info" if top["words"] < _SENTENCE else "warning"
                yield Fault("$", message, "vary them, or keep fewer, unless it is a label", severity)
        if figures["refusals"] > _REFUSAL_SHARE:
            yield Fault(
                "$",
                f"{figures['refusals']:.0%} of the answers refuse",
                "drop some, or the model will refuse too",
                "warning",
            )
        if figures["compression_ratio"] > _COMPRESSION:
            yield Fault(
                "$",
                f"the answers compress {figures['compression_ratio']:.0f} to 1: they say much the same",
                "add other examples; quality and diversity matter more than quantity",
                "warning",
            )


def _distinct(answers: Sequence[Sequence[str]], n: int) -> float:
    runs = [tuple(words[at : at + n]) for words in answers for at in range(len(words) - n + 1)]
    return round(len(set(runs)) / len(runs), 4) if runs else 0.0


def _is_refusal(answer: str) -> bool:
    return bool(_REFUSAL.search(answer[:200]))
