"""The graders' fields, with OpenAI's names; `json_schema` is Tunery's own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tunery.plugins.evals.sampling import read_sampling
from tunery.registry.errors import InvalidInput

__all__ = ["Grader", "JsonSchemaGrader", "LabelModel", "ScoreModel", "StringCheck", "TextSimilarity"]

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Label = Annotated[str, Meta(min_length=1, max_length=200)]
LARGEST = 1e9
"""The largest number that a range may have; far larger ones cannot be enforced by structured output."""
ANSWER = "{{sample.output_text}}"


class _Grader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    name: Name


class StringCheck(_Grader, frozen=True, kw_only=True, tag="string_check"):
    """Whether the input equals the reference (eq), does not (ne), or contains it (like; ilike in any case)."""

    input: str
    reference: str
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(_Grader, frozen=True, kw_only=True, tag="text_similarity"):
    """How similar the input is to the reference."""

    input: str
    reference: str
    evaluation_metric: str
    pass_threshold: Annotated[float, Meta(ge=0, le=1)]


class JsonSchemaGrader(_Grader, frozen=True, kw_only=True, tag="json_schema"):
    """Whether the input, the answer unless it says otherwise, is JSON that is valid under the schema."""

    schema: dict[str, Any]
    input: str = ANSWER


class LabelModel(_Grader, frozen=True, kw_only=True, tag="label_model"):
    """A model gives one of the labels; some of them pass."""

    model: str
    input: list[dict[str, Any]]
    labels: Annotated[list[Label], Meta(min_length=1, max_length=100)]
    passing_labels: Annotated[list[Label], Meta(min_length=1)]


class ScoreModel(_Grader, frozen=True, kw_only=True, tag="score_model"):
    """A model gives a number within the range (0 to 1 unless it says otherwise), which passes from the threshold on.

    Without one it passes from the middle of the range on.
    """

    model: str
    input: list[dict[str, Any]]
    range: Annotated[list[float], Meta(min_length=2, max_length=2)] | None = None
    pass_threshold: float | None = None
    sampling_params: dict[str, Any] | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest number."""
        low, high = self.range or (0.0, 1.0)
        return low, high

    @property
    def threshold(self) -> float:
        """The lowest number that passes."""
        return sum(self.bounds) / 2 if self.pass_threshold is None else self.pass_threshold

    @property
    def sampling(self) -> dict[str, Any]:
        """How the model is sampled."""
        return read_sampling(self.sampling_params, param="sampling_params")

    def check(self, param: str) -> None:
        """Raise InvalidInput for an empty range, a threshold outside of it, or sampling that is not supported."""
        low, high = self.bounds
        if not -LARGEST <= low < high <= LARGEST:
            raise InvalidInput(
                f"{param}.range must be two numbers from {-LARGEST:,.0f} to {LARGEST:,.0f}, the lower one first",
                param=f"{param}.range",
            )
        if not low <= self.threshold <= high:
            raise InvalidInput(
                f"{param}.pass_threshold is {self.threshold:g}, outside of the range {low:g} to {high:g}",
                param=f"{param}.pass_threshold",
            )
        read_sampling(self.sampling_params, param=f"{param}.sampling_params")


Grader = StringCheck | TextSimilarity | JsonSchemaGrader | LabelModel | ScoreModel
