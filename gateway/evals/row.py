"""One row: each model answers once, and every grader says what it thinks of the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tunery.gateway.api.evaluations.planning import Work
from tunery.gateway.api.schemas.responses import ChatCompletion, Usage
from tunery.plugins.evals.graders import CompiledGrader, Score
from tunery.plugins.evals.items import Item
from tunery.plugins.evals.json_validity import parse_json
from tunery.plugins.evals.plan import RunPlan
from tunery.plugins.evals.results import Answer, AnswerError, ItemResult, TokenUsage
from tunery.plugins.evals.template import NotJson
from tunery.registry.errors import ArtifactRefused, InvalidInput

__all__ = ["Ask", "evaluate_row"]

JUDGE_TOKENS = 256
"""Tokens of a judge's answer, unless its grader says otherwise: it is a label or a number."""

Ask = Callable[[dict[str, Any]], Awaitable[ChatCompletion]]
"""Answers the body of a chat request."""
Grade = Callable[[Callable[[], list[Score]]], Awaitable[list[Score]]]
"""Runs what takes a while off the event loop."""


async def evaluate_row(item: Item, plan: RunPlan, work: Work, *, ask: Ask, offload: Grade) -> ItemResult:
    """The answers to a row and their scores. What is wrong with one row is part of its result."""
    messages = work.prompts.messages(item)
    answers = []
    for model in plan.models:
        body: dict[str, Any] = plan.sampling | {"model": model.reference, "messages": messages}
        body |= {"tools": item.tools} if item.tools else {}
        answers.append(await _answer(body, item, plan, work, ask=ask, offload=offload))
    return ItemResult(line=item.line, item=item.fields, input=messages, answers=answers)


async def _answer(body: dict[str, Any], item: Item, plan: RunPlan, work: Work, *, ask: Ask, offload: Grade) -> Answer:
    model: str = body["model"]
    try:
        completion = await ask(body)
    except (InvalidInput, ArtifactRefused) as error:
        # Such as a prompt that is longer than the context. A version that cannot be served at all ends the run.
        if isinstance(error, ArtifactRefused) and error.code != "nonfinite_output":
            raise
        wrong = AnswerError(error.code, error.message)
        return Answer(model=model, text=None, finish_reason=None, usage=TokenUsage(1), error=wrong)
    (choice,) = completion.choices
    text = (choice.message.content or "") if choice.message else ""
    context = {"item": item.fields, "sample": _sample(text)}
    scores = await offload(lambda: [grader.grade(context) for grader in work.graders if grader.model is None])
    by_name = {score.name: score for score in scores}
    judged: dict[str, TokenUsage] = {}
    for grader in work.graders:
        if grader.model is not None:
            by_name[grader.name], used = await _judge(grader, context, plan, ask)
            judged[grader.model] = judged.get(grader.model, TokenUsage()) + used
    return Answer(
        model=model,
        text=text,
        finish_reason=choice.finish_reason,
        usage=_usage(completion),
        scores=[by_name[grader.name] for grader in work.graders],
        judged=judged,
    )


async def _judge(grader: CompiledGrader, context: dict[str, Any], plan: RunPlan, ask: Ask) -> tuple[Score, TokenUsage]:
    """What a grader's model says of an answer, and the tokens that took."""
    try:
        wanted = grader.judge(context)
    except NotJson as error:
        return grader.failed(error.message), TokenUsage()
    assert wanted is not None and grader.model is not None  # noqa: PT018, S101 - for the type checker
    defaults = {"temperature": 0.0, "seed": 0, "max_completion_tokens": JUDGE_TOKENS}
    fields = {"messages": wanted.messages, "response_format": wanted.response_format}
    try:
        completion = await ask(defaults | wanted.sampling | fields | {"model": plan.judge(grader.model)})
    except InvalidInput as error:
        return grader.errored(f"the judge could not be asked: {error.message}"), TokenUsage(1)
    message = completion.choices[0].message
    return grader.read_verdict((message.content or "") if message else ""), _usage(completion)


def _sample(text: str) -> dict[str, Any]:
    """An answer as templates see it; without `output_json` where it is not JSON."""
    try:
        return {"output_text": text, "output_json": parse_json(text)}
    except ValueError:
        return {"output_text": text}


def _usage(completion: ChatCompletion) -> TokenUsage:
    usage = completion.usage
    if not isinstance(usage, Usage):
        return TokenUsage(1)
    return TokenUsage(1, usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens)
