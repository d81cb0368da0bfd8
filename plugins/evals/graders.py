"""Graders as OpenAI writes them, read once and applied to answers: each gives a score from 0 to 1 and passes or not.

`label_model` and `score_model` ask a model: `judge` says what to ask it, `read_verdict` reads what it said. All others are
computed here by `grade`. Graders that would run code, or ask something elsewhere, are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tunery.plugins.evals.grader_types import (
    Grader,
    JsonSchemaGrader,
    LabelModel,
    ScoreModel,
    StringCheck,
    TextSimilarity,
)
from tunery.plugins.evals.json_validity import JsonValidity, parse_json
from tunery.plugins.evals.messages import MessageTemplate
from tunery.plugins.evals.similarity import METRICS, similarity
from tunery.plugins.evals.template import NotJson, Template, parse_template
from tunery.registry.errors import InvalidInput, UnknownName

__all__ = ["CompiledGrader", "Context", "Judge", "Score", "read_graders"]

MAX_GRADERS = 32
MAX_SIZE = 128 * 1024
"""Bytes of all graders as JSON: checking a large schema takes a second."""
METRICS_LEFT_OUT = ("cosine", "meteor")
_REFUSED = {
    "python": "no code of a user is executed here",
    "endpoint": "nothing is asked from elsewhere",
    "multi": "list its graders instead, each has results of its own",
    "score_audio": "only text is graded",
}
Context = Mapping[str, Any]
"""`item` and `sample`, as templates see them."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What a grader says of an answer: a `score` from 0 to 1 and whether it passed, or an `error` and no score.

    `note` says why an answer has no score above 0, `sample` is what a judge answered.
    """

    name: str
    type: str
    score: float | None
    passed: bool
    note: str | None = None
    error: str | None = None
    sample: dict[str, Any] | None = None


class Judge(msgspec.Struct, frozen=True):
    """What a grader asks a model: its messages, the form of its answer, and how it is sampled."""

    messages: list[dict[str, Any]]
    response_format: dict[str, Any]
    sampling: dict[str, Any]


class CompiledGrader:
    """A grader with its templates parsed and its schema checked. Raises InvalidInput for what is wrong in it."""

    def __init__(self, grader: Grader, *, param: str) -> None:
        self.grader, self.name = grader, grader.name
        self.type: str = str(grader.__struct_config__.tag)
        self.model = grader.model if isinstance(grader, LabelModel | ScoreModel) else None
        self._input = self._reference = Template(())
        self._messages: MessageTemplate | None = None
        self._schema: JsonValidity | None = None
        match grader:
            case LabelModel() | ScoreModel():
                self._messages = MessageTemplate(grader.input, param=f"{param}.input")
            case JsonSchemaGrader():
                self._input = parse_template(grader.input, param=f"{param}.input")
                self._schema = JsonValidity(grader.schema, param=f"{param}.schema")
            case _:
                self._input = parse_template(grader.input, param=f"{param}.input")
                self._reference = parse_template(grader.reference, param=f"{param}.reference")
        _check(grader, param)

    def check_item(self, item: dict[str, Any]) -> None:
        """Raise InvalidInput for the first field of the grader's templates that an item does not have."""
        templates = [self._input, self._reference, *(self._messages.templates if self._messages else ())]
        for template in templates:
            for path in template.paths:
                if path.root == "item":
                    path.look_up({"item": item})

    def judge(self, context: Context) -> Judge | None:
        """What to ask the grader's model, None for a grader without one; raise NotJson as templates do."""
        if self._messages is None:
            return None
        grader = self.grader
        if isinstance(grader, LabelModel):
            value: dict[str, Any] = {"type": "string", "enum": grader.labels}
            return Judge(self._messages.fill(context), _object("label", value), {})
        assert isinstance(grader, ScoreModel)  # noqa: S101 - for the type checker
        low, high = grader.bounds
        number = {"type": "number", "minimum": low, "maximum": high}
        return Judge(self._messages.fill(context), _object("score", number), grader.sampling)

    def failed(self, note: str) -> Score:
        """The score of an answer that does not have what is graded."""
        return Score(name=self.name, type=self.type, score=0.0, passed=False, note=note)

    def errored(self, error: str, *, sample: dict[str, Any] | None = None) -> Score:
        """No score, and why."""
        return Score(name=self.name, type=self.type, score=None, passed=False, error=error, sample=sample)

    def _scored(self, score: float, passed: bool, *, note: str | None = None, sample: Any = None) -> Score:
        return Score(name=self.name, type=self.type, score=score, passed=passed, note=note, sample=sample)

    def grade(self, context: Context) -> Score:
        """The score of an answer, by a grader without a model."""
        try:
            return self._grade(context)
        except NotJson as error:
            return self.failed(error.message)
        except InvalidInput as error:
            return self.errored(error.message)

    def _grade(self, context: Context) -> Score:
        text = self._input.fill(context)
        grader = self.grader
        if isinstance(grader, StringCheck):
            passed = _string_check(grader.operation, text, self._reference.fill(context))
            return self._scored(float(passed), passed)
        if isinstance(grader, TextSimilarity):
            score = similarity(grader.evaluation_metric, text, self._reference.fill(context))
            return self._scored(score, score >= grader.pass_threshold)
        try:
            value = parse_json(text)
        except ValueError as error:
            return self.failed(f"it is not JSON: {error}")
        problem = self._schema.problem(value) if self._schema else None
        return self._scored(float(problem is None), problem is None, note=problem)

    def read_verdict(self, text: str) -> Score:
        """The score in a judge's answer; an error where it does not have the form that was asked for."""
        field = "label" if isinstance(self.grader, LabelModel) else "score"
        sample = {"output_text": text}
        try:
            verdict = parse_json(text)
        except ValueError:
            return self.errored(f"the judge's answer is not JSON: {text[:200]!r}", sample=sample)
        value = verdict.get(field) if isinstance(verdict, dict) and set(verdict) == {field} else None
        grader = self.grader
        if isinstance(grader, LabelModel) and isinstance(value, str) and value in grader.labels:
            passed = value in grader.passing_labels
            return self._scored(float(passed), passed, sample=sample | {"label": value})
        if isinstance(grader, ScoreModel) and isinstance(value, int | float) and not isinstance(value, bool):
            low, high = grader.bounds
            if low <= value <= high:
                score = (value - low) / (high - low)
                return self._scored(score, value >= grader.threshold, sample=sample | {"value": value})
        return self.errored(f"the judge's answer has no {field} that was asked for: {text[:200]!r}", sample=sample)


def read_graders(raw: Sequence[Any], *, param: str = "testing_criteria") -> list[CompiledGrader]:
    """Read graders; raise InvalidInput that names the one that is wrong, and what in it."""
    if not 0 < len(raw) <= MAX_GRADERS:
        raise InvalidInput(f"{param} has {len(raw)} graders; write 1 to {MAX_GRADERS}", param=param)
    if (size := len(msgspec.json.encode(raw))) > MAX_SIZE:
        raise InvalidInput(f"{param} has {size} bytes of JSON; the limit is {MAX_SIZE}", param=param)
    compiled = [_read(each, f"{param}[{at}]") for at, each in enumerate(raw)]
    names = [each.name for each in compiled]
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise InvalidInput(f"{param}: two graders are named {twice[:80]!r}; results are by name", param=param)
    return compiled


def _read(raw: Any, param: str) -> CompiledGrader:
    kind = raw.get("type") if isinstance(raw, dict) else None
    if isinstance(kind, str) and kind in _REFUSED:
        raise InvalidInput(
            f"{param}: graders of type {kind} are not supported: {_REFUSED[kind]}",
            code="unsupported_grader",
            param=param,
        )
    if isinstance(raw, dict):
        raw = {name: value for name, value in raw.items() if value is not None}
    try:
        grader: Grader = msgspec.convert(raw, Grader)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{param} is not a grader: {error}", code="invalid_grader", param=param) from error
    return CompiledGrader(grader, param=param)


def _check(grader: Grader, param: str) -> None:
    """Raise InvalidInput for values that contradict each other."""
    if isinstance(grader, TextSimilarity) and grader.evaluation_metric not in METRICS:
        where = f"{param}.evaluation_metric"
        if grader.evaluation_metric in METRICS_LEFT_OUT:
            raise InvalidInput(
                f"{where}: {grader.evaluation_metric} is not supported; there are {', '.join(METRICS)}",
                code="unsupported_grader",
                param=where,
            )
        raise UnknownName("metric", grader.evaluation_metric[:80], METRICS, param=where)
    if isinstance(grader, LabelModel):
        for name, labels in (("labels", grader.labels), ("passing_labels", grader.passing_labels)):
            twice = next((label for at, label in enumerate(labels) if label in labels[:at]), None)
            if twice is not None:
                raise InvalidInput(f"{param}.{name} has {twice[:80]!r} twice; list it once", param=f"{param}.{name}")
    if isinstance(grader, LabelModel) and not set(grader.passing_labels) <= set(grader.labels):
        raise InvalidInput(f"{param}.passing_labels must be among labels", param=f"{param}.passing_labels")
    if isinstance(grader, ScoreModel):
        grader.check(param)


def _string_check(operation: str, text: str, reference: str) -> bool:
    match operation:
        case "eq":
            return text == reference
        case "ne":
            return text != reference
        case "like":
            return reference in text
        case _:
            return reference.casefold() in text.casefold()


def _object(field: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The response format of an object with that one field."""
    shape = {"type": "object", "properties": {field: schema}, "required": [field], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": field, "schema": shape, "strict": True}}
