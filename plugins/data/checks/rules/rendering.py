"""The rules that need a base: which tokens of a row are trained, whether its answers end, and how long it is in
tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from tunery.plugins.data.checks.check import Check, CheckContext, Fault
from tunery.plugins.data.checks.parsed_record import Location, ParsedRecord
from tunery.registry.errors import InvalidInput

__all__ = ["EndOfTurn", "NoTrainableToken", "TemplateRefused", "TokenLength", "Truncation"]

_UNTRAINABLE = "no_trainable_token"


class TemplateRefused(Check):
    """Rows that the chat template refuses, for any reason but that there is nothing to train."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        error = record.rendered
        if isinstance(error, InvalidInput) and error.code != _UNTRAINABLE:
            yield Fault("$", error.message, "change the row, or train another base")


class NoTrainableToken(Check):
    """Rows with no trained token, or none within max_length."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        row = record.row
        if row is not None and all(message.get("weight") == 0 for message in _answers(row.messages)):
            yield Fault("$", "has no answer with a weight above 0", "drop the row, or set a weight to 1")
            return
        limit = self.context.max_length
        if any(not any(example.trained[:limit]) for example in record.examples):
            yield Fault(
                "$",
                f"has nothing to train on within max_length={limit} tokens",
                "shorten the prompt or raise max_length",
            )


class EndOfTurn(Check):
    """Answers that do not end in a token that stops generation: the model would never learn to stop."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        for example in record.examples:
            stops = record.renderer.stop_ids if record.renderer else ()
            ends = [example.ids[end - 1] in stops for _, end in _spans(example.trained)]
            if ends and not ends[-1]:
                yield Fault(
                    "$",
                    "has a last answer that does not end in a token that stops",
                    "use a base whose chat template or tokenizer has an end-of-turn token",
                )
            elif not all(ends):
                yield Fault(
                    "$", "has an earlier answer that does not end in a token that stops", "split the row", "warning"
                )


class Truncation(Check):
    """Rows longer than max_length, whose end is cut off."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        limit = self.context.max_length
        for example in record.examples:
            length, lost = len(example.ids), sum(example.trained[limit:])
            if length > limit:
                yield Fault(
                    "$",
                    f"has {length} tokens, of which the last {length - limit} are cut off ({lost} of them trained)",
                    f"shorten it, or set max_length={length}",
                )


class TokenLength(Check):
    """Reports no faults, only the figures `tokens`."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._total: Counter[int] = Counter()
        self._trained: Counter[int] = Counter()

    def summarize(self, record: ParsedRecord) -> list[tuple[int, int]] | None:
        return [(len(example.ids), sum(example.trained)) for example in record.examples] or None

    def compare(self, location: Location, summary: list[tuple[int, int]]) -> Iterable[Fault]:
        for total, trained in summary:
            self._total[total] += 1
            self._trained[trained] += 1
        return ()

    def statistics(self) -> dict[str, Any]:
        if not self._total:
            return {}
        limit = self.context.max_length
        over = sum(count for length, count in self._total.items() if length > limit)
        lost = sum((length - limit) * count for length, count in self._total.items() if length > limit)
        return {
            "tokens": {
                "total": _quantiles(self._total),
                "trained": _quantiles(self._trained),
                "max_length": limit,
                "over_max_length": over,
                "lost": lost,
            }
        }


def _answers(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if message["role"] == "assistant"]


def _spans(trained: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Start and end of each run of trained tokens."""
    at = 0
    for is_trained, run in groupby(trained):
        start, at = at, at + sum(1 for _ in run)
        if is_trained:
            yield start, at


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    """Minimum, median, 95th percentile, maximum and sum of lengths that occur `counts[length]` times."""
    number, passed = sum(counts.values()), 0
    wanted = {"min": 0, "p50": (number - 1) // 2, "p95": (number - 1) * 95 // 100, "max": number - 1}
    quantiles: dict[str, int] = {}
    for length in sorted(counts):
        passed += counts[length]
        quantiles |= {name: length for name, rank in wanted.items() if name not in quantiles and rank < passed}
    return {name: quantiles[name] for name in wanted} | {"sum": sum(length * count for length, count in counts.items())}
