"""Training examples: the token ids of a conversation, and which of them the model is trained to produce.

An assistant turn's trained span starts where the serving prompt for it ends: at the end of `messages[:i]` rendered with
the generation prompt. It ends with the end-of-turn token that the template writes after the content. So whatever
template a base has, the tokens before the first trained one are exactly those that the server sends, and the model
learns to stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from tunery.plugins.data.render.conversation import Message
from tunery.plugins.data.render.cuts import encode_with_cuts
from tunery.plugins.data.render.template_renderer import TemplateRenderer, Tools
from tunery.plugins.data.render.turns import PROBES, Turn, shared_length, turn_edges
from tunery.registry.errors import InvalidInput

__all__ = ["RenderedExample", "build_examples"]


class RenderedExample(msgspec.Struct, frozen=True):
    """A training example: `ids` and, for each of them, whether the model is trained to produce it."""

    ids: list[int]
    trained: list[bool]


def build_examples(
    renderer: TemplateRenderer, messages: Sequence[Message], tools: Tools | None
) -> list[RenderedExample]:
    """The training examples of a conversation; see `Renderer.examples`."""
    messages, tools = renderer.prepare_messages(messages, tools)
    indices = [index for index, message in enumerate(messages) if _is_trained(message)]
    messages = [{name: item for name, item in message.items() if name != "weight"} for message in messages]
    if not indices:
        raise InvalidInput(
            "no assistant message with a weight above 0: there is nothing to train on; add one",
            code="no_trainable_token",
        )
    _check_reasoning(renderer, [messages[index] for index in indices])
    if not renderer.template:
        return [_raw_example(renderer, messages)]
    text = renderer.render(messages, tools=tools)
    all_turns = renderer.find_turns(messages, text, tools)
    turns = [turn for index in indices if (turn := all_turns[index])]
    if len(turns) == len(indices):
        end = turns[-1].end
        # Answers that are not trained are cut off too, as they are in the prompts of the later ones.
        earlier = [turn for turn in all_turns.values() if turn and turn.end <= end]
        return [_example_of(renderer, text[:end], turns, earlier)]
    return [_single_turn_example(renderer, messages[: index + 1], tools) for index in indices]


def _check_reasoning(renderer: TemplateRenderer, answers: Sequence[Message]) -> None:
    """Refuse to train on reasoning that the template would silently leave out."""
    if any(message.get("reasoning_content") for message in answers) and not renderer.takes_reasoning:
        raise InvalidInput(
            "an answer has reasoning_content, which this base's chat template does not write; put it into content, or drop it",
            code="template_refused",
        )


def _example_of(
    renderer: TemplateRenderer, text: str, turns: Sequence[Turn], others: Iterable[Turn | None]
) -> RenderedExample:
    """The example that trains `turns`, in a text that ends with the last of them; it is cut at the edges of `others`
    too."""
    cuts = turn_edges([*turns, *others])
    ids, places = encode_with_cuts(renderer.tokenizer, text, cuts)
    at = dict(zip(cuts, places, strict=True))
    trained = [False] * len(ids)
    for turn in turns:
        trained[at[turn.start] : at[turn.end]] = [True] * (at[turn.end] - at[turn.start])
    if not turns[-1].stops and renderer.end_of_turn is not None:
        ids, trained = [*ids, renderer.end_of_turn], [*trained, True]
    return RenderedExample(ids, trained)


def _single_turn_example(
    renderer: TemplateRenderer, messages: Sequence[Message], tools: Tools | None
) -> RenderedExample:
    """An example of the last answer alone, after exactly the prompt that serving would send for it."""
    prompt = renderer.render(messages[:-1], prompt=True, tools=tools)
    text = renderer.render(messages, tools=tools)
    answers: list[Message] = [{"role": "assistant", "content": probe} for probe in PROBES]
    probes = [renderer.render([*messages[:-1], answer], tools=tools) for answer in answers]
    begin = min(shared_length(prompt, probe) for probe in probes)
    if shared_length(text, probes[0]) < begin:
        raise InvalidInput(
            "the base's chat template renders the conversation before this answer differently once it is there; "
            "train on single-turn rows with this base",
            code="template_refused",
        )
    full_text = prompt + text[begin:]
    end, stops = renderer.turn_finder(messages, full_text, tools).end(
        full_text, len(prompt), len(full_text), messages[-1]
    )
    earlier = renderer.find_turns(messages[:-1], prompt, tools).values()
    return _example_of(renderer, full_text[:end], [Turn(len(prompt), end, stops)], earlier)


def _raw_example(renderer: TemplateRenderer, messages: Sequence[Message]) -> RenderedExample:
    if [message["role"] for message in messages] != ["user", "assistant"]:
        raise InvalidInput(
            "the base has no chat template, so a row must be one prompt and one completion", code="no_template"
        )
    prompt, answer = (renderer.tokenizer.special.unmask(str(message["content"])) for message in messages)
    before = renderer.tokenizer.encode(prompt, bos=True)
    after = encode_with_cuts(renderer.tokenizer, prompt + answer, [len(prompt)])
    ids = after[0][after[1][0] :] + ([renderer.end_of_turn] if renderer.end_of_turn is not None else [])
    return RenderedExample(before + ids, [False] * len(before) + [True] * len(ids))


def _is_trained(message: Message) -> bool:
    return bool(message["role"] == "assistant" and message.get("weight", 1) != 0)
