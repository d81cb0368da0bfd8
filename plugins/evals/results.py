"""The results of rows, as they are stored and as they are summed up."""

from __future__ import annotations

from typing import Any

import msgspec

from tunery.plugins.evals.graders import Score
from tunery.registry.evals.records import ItemState

__all__ = ["Answer", "AnswerError", "ItemResult", "TokenUsage"]


class TokenUsage(msgspec.Struct, frozen=True):
    """Requests and their tokens."""

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            self.requests + other.requests,
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.cached + other.cached,
        )


class AnswerError(msgspec.Struct, frozen=True):
    """Why a model did not answer."""

    code: str
    message: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A model's answer to a row and what the graders say of it; `judged` are the tokens of judges by model."""

    model: str
    text: str | None
    finish_reason: str | None
    usage: TokenUsage
    error: AnswerError | None = None
    scores: list[Score] = []
    judged: dict[str, TokenUsage] = {}

    @property
    def state(self) -> ItemState:
        """Pass when all graders pass it; error when it, or one of them, could not be had."""
        if self.error is not None or any(score.error is not None for score in self.scores):
            return "error"
        return "pass" if all(score.passed for score in self.scores) else "fail"

    def score(self, grader: str) -> Score | None:
        """What a grader says of it; None where that could not be had."""
        found = next((score for score in self.scores if score.name == grader), None)
        return None if found is None or found.error is not None else found


class ItemResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a row: what was asked, and the answers in the order of the run's models."""

    line: int
    item: dict[str, Any]
    input: list[dict[str, Any]]
    answers: list[Answer]

    @property
    def figures(self) -> ItemResult:
        """What is summed up of it: everything but the texts."""
        answers = [msgspec.structs.replace(answer, text=None) for answer in self.answers]
        return ItemResult(line=self.line, item={}, input=[], answers=answers)
