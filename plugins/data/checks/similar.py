"""Owns the rules that compare rows: equal ones, near-equal ones, contradictions, and held-out rows that are trained on.

Memory grows by a hash and a signature a row, not by the row.
"""

from __future__ import annotations

from collections.abc import Iterable

from tunery.plugins.data.checks.finding import Check, Context, Fault
from tunery.plugins.data.checks.line import Line, Place
from tunery.plugins.data.checks.minhash import SimilarIndex

__all__ = ["ConflictingAnswers", "Duplicate", "Leakage", "NearDuplicate"]


class Duplicate(Check):
    """Rows that equal an earlier one on the same side; across sides it is leakage."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._seen: dict[tuple[bool, bytes], Place] = {}

    def note(self, line: Line) -> bytes | None:
        return line.prompt_key + line.answer_key if line.row else None

    def gather(self, place: Place, note: bytes) -> Iterable[Fault]:
        first = self._seen.setdefault((place.validation, note), place)
        if first is not place:
            yield Fault("$", f"is the same as {first}", "drop one of them")


class NearDuplicate(Check):
    """Rows near to an earlier one on the same side, that are not equal to it."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._seen: set[tuple[bool, bytes]] = set()
        self._near: dict[bool, SimilarIndex[Place]] = {}

    def note(self, line: Line) -> tuple[bytes, bytes] | None:
        if line.row is None or line.signature is None:
            return None
        return line.prompt_key + line.answer_key, line.signature

    def gather(self, place: Place, note: tuple[bytes, bytes]) -> Iterable[Fault]:
        key, signature = (place.validation, note[0]), note[1]
        if key in self._seen:
            return
        self._seen.add(key)
        index = self._near.setdefault(place.validation, SimilarIndex())
        if (found := index.find(signature)) is None:
            index.add(signature, place)
        else:
            first, share = found
            yield Fault("$", f"is {share:.0%} the same as {first}", "keep one, or make them differ in what matters")


class ConflictingAnswers(Check):
    """Prompts that were answered otherwise before; of preferences, answers that are better in one row and worse in another.

    Prompts that differ in case or white space alone are one prompt here, and what they conflict in is a warning.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._seen: dict[tuple[bool, bytes], tuple[bytes, Place]] = {}
        self._loose: dict[tuple[bool, bytes], tuple[bytes, Place]] = {}
        self._judged: dict[tuple[bool, bytes, bytes], tuple[bool, Place]] = {}

    def note(self, line: Line) -> tuple[bytes, bytes, tuple[bytes, bytes], bool] | None:
        if line.row is None:
            return None
        if line.halves is not None:
            return line.prompt_key, b"", line.halves, True
        return line.prompt_key, line.answer_key, line.loose_keys, False

    def gather(self, place: Place, note: tuple[bytes, bytes, tuple[bytes, bytes], bool]) -> Iterable[Fault]:
        prompt, answer, pair, is_preference = note
        if is_preference:
            yield from self._judgements(place, prompt, pair)
            return
        known, first = self._seen.setdefault((place.validation, prompt), (answer, place))
        loose, other = self._loose.setdefault((place.validation, pair[0]), (pair[1], place))
        if known != answer:
            yield Fault("$", f"has the prompt of {first} with another answer", _WHY)
        elif loose != pair[1] and first is place:
            yield Fault("$", f"has the prompt of {other}, but for case or spaces, with another answer", _WHY, "warning")

    def _judgements(self, place: Place, prompt: bytes, halves: tuple[bytes, bytes]) -> Iterable[Fault]:
        """A prompt may be in many rows of preference; that one of its answers is once better and once worse is the fault."""
        for better, answer in zip((True, False), halves, strict=True):
            judged, first = self._judged.setdefault((place.validation, prompt, answer), (better, place))
            if judged != better:
                said, other = ("prefers", "rejects") if better else ("rejects", "prefers")
                yield Fault("$", f"{said} an answer that {first} {other} to the same prompt", "keep the right one")
                return


class Leakage(Check):
    """Held-out rows that are near to a row that is trained on, or ask the same. Held-out files come after the others."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._prompts: dict[bytes, Place] = {}
        self._near: SimilarIndex[Place] | None = SimilarIndex() if context.has_validation else None

    def note(self, line: Line) -> tuple[bytes, bytes | None] | None:
        if line.row is None or not self.context.has_validation:
            return None
        return line.prompt_key, line.signature

    def gather(self, place: Place, note: tuple[bytes, bytes | None]) -> Iterable[Fault]:
        prompt, signature = note
        if not place.validation:
            self._prompts.setdefault(prompt, place)
            if signature and self._near and self._near.find(signature) is None:
                self._near.add(signature, place)
        elif prompt in self._prompts:
            yield Fault("$", f"asks the same as {self._prompts[prompt]}, which is trained on", _APART)
        elif signature and self._near and (found := self._near.find(signature)):
            yield Fault("$", f"is {found[1]:.0%} the same as {found[0]}, which is trained on", _APART)


_WHY = "keep the right one, or say in the prompt why"
_APART = "take it out of one of the files; tunery data split keeps such rows together"
