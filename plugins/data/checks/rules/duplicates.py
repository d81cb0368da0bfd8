"""The rules that compare rows: `duplicate`, `near_duplicate`, `conflicting_answers` and `leakage`.

Memory grows by a hash and a signature per row, not by the row itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from tunery.plugins.data.checks.check import Check, CheckContext, Fault
from tunery.plugins.data.checks.minhash import SimilarIndex
from tunery.plugins.data.checks.parsed_record import Location, ParsedRecord

__all__ = ["ConflictingAnswers", "Duplicate", "Leakage", "NearDuplicate"]

_KEEP_ONE_ANSWER = "keep the right one, or say in the prompt why"
_SEPARATE = "take it out of one of the files; tunery data split keeps such rows together"


class Duplicate(Check):
    """Rows equal to an earlier one in the same split. Across splits that is `leakage`."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._seen: dict[tuple[bool, bytes], Location] = {}

    def summarize(self, record: ParsedRecord) -> bytes | None:
        return record.prompt_key + record.answer_key if record.row else None

    def compare(self, location: Location, summary: bytes) -> Iterable[Fault]:
        first = self._seen.setdefault((location.held_out, summary), location)
        if first is not location:
            yield Fault("$", f"is the same as {first}", "drop one of them")


class NearDuplicate(Check):
    """Rows similar, but not equal, to an earlier one in the same split."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._seen: set[tuple[bool, bytes]] = set()
        self._indices: dict[bool, SimilarIndex[Location]] = {}

    def summarize(self, record: ParsedRecord) -> tuple[bytes, bytes] | None:
        if record.row is None or record.signature is None:
            return None
        return record.prompt_key + record.answer_key, record.signature

    def compare(self, location: Location, summary: tuple[bytes, bytes]) -> Iterable[Fault]:
        key, signature = (location.held_out, summary[0]), summary[1]
        if key in self._seen:
            return
        self._seen.add(key)
        index = self._indices.setdefault(location.held_out, SimilarIndex())
        if (similar := index.find(signature)) is None:
            index.add(signature, location)
        else:
            first, share = similar
            yield Fault("$", f"is {share:.0%} the same as {first}", "keep one, or make them differ in what matters")


class ConflictingAnswers(Check):
    """Prompts that an earlier row answers differently; in preference rows, answers preferred in one and rejected in
    another.

    Prompts that differ only in case or white space count as one prompt, but a conflict between them is only a warning.
    """

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._exact: dict[tuple[bool, bytes], tuple[bytes, Location]] = {}
        self._loose: dict[tuple[bool, bytes], tuple[bytes, Location]] = {}
        self._preferred: dict[tuple[bool, bytes, bytes], tuple[bool, Location]] = {}

    def summarize(self, record: ParsedRecord) -> tuple[bytes, bytes, tuple[bytes, bytes], bool] | None:
        """The prompt's key, the answer's, a pair of keys, and whether that pair is a preference's rather than the loose
        keys."""
        if record.row is None:
            return None
        if record.preference_keys is not None:
            return record.prompt_key, b"", record.preference_keys, True
        return record.prompt_key, record.answer_key, record.loose_keys, False

    def compare(self, location: Location, summary: tuple[bytes, bytes, tuple[bytes, bytes], bool]) -> Iterable[Fault]:
        prompt, answer, pair, is_preference = summary
        if is_preference:
            yield from self._compare_preference(location, prompt, pair)
            return
        loose_prompt, loose_answer = pair
        first_answer, first = self._exact.setdefault((location.held_out, prompt), (answer, location))
        first_loose, other = self._loose.setdefault((location.held_out, loose_prompt), (loose_answer, location))
        if first_answer != answer:
            yield Fault("$", f"has the prompt of {first} with another answer", _KEEP_ONE_ANSWER)
        elif first_loose != loose_answer and first is location:
            message = f"has the prompt of {other}, but for case or spaces, with another answer"
            yield Fault("$", message, _KEEP_ONE_ANSWER, "warning")

    def _compare_preference(self, location: Location, prompt: bytes, answers: tuple[bytes, bytes]) -> Iterable[Fault]:
        """A prompt may occur in many preference rows; the fault is that one of its answers is both preferred and
        rejected."""
        for is_chosen, answer in zip((True, False), answers, strict=True):
            was_chosen, first = self._preferred.setdefault((location.held_out, prompt, answer), (is_chosen, location))
            if was_chosen != is_chosen:
                here, there = ("prefers", "rejects") if is_chosen else ("rejects", "prefers")
                yield Fault("$", f"{here} an answer that {first} {there} to the same prompt", "keep the right one")
                return


class Leakage(Check):
    """Held-out rows whose prompt, or nearly whose content, is trained on. Held-out files come after the others."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._prompts: dict[bytes, Location] = {}
        self._index: SimilarIndex[Location] | None = SimilarIndex() if context.has_held_out else None

    def summarize(self, record: ParsedRecord) -> tuple[bytes, bytes | None] | None:
        if record.row is None or not self.context.has_held_out:
            return None
        return record.prompt_key, record.signature

    def compare(self, location: Location, summary: tuple[bytes, bytes | None]) -> Iterable[Fault]:
        prompt, signature = summary
        if not location.held_out:
            self._prompts.setdefault(prompt, location)
            if signature and self._index and self._index.find(signature) is None:
                self._index.add(signature, location)
        elif prompt in self._prompts:
            yield Fault("$", f"asks the same as {self._prompts[prompt]}, which is trained on", _SEPARATE)
        elif signature and self._index and (similar := self._index.find(signature)):
            first, share = similar
            yield Fault("$", f"is {share:.0%} the same as {first}, which is trained on", _SEPARATE)
