"""Owns the one way from messages to token ids, for training labels and for serving prompts; refuses to guess by markers.

An assistant turn's trained span starts where the serving prompt for it ends: at the end of `messages[:i]` rendered with the
generation prompt. It ends with the end-of-turn token the template writes after the content. So whatever template a base has, the
tokens before the first trained one are exactly those the server sends, and the model learns to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.data.render.conversation import plain_message, plain_tool
from tunery.plugins.data.render.template import ChatTemplate, Message, find_template
from tunery.plugins.data.render.tokenizer import BaseTokenizer, Check, Decoder, read_json
from tunery.plugins.data.render.tools import PROBE, CallStyle, as_text, call_style, with_short_ids
from tunery.plugins.data.render.turns import PROBES, Turn, TurnFinder, shared_length
from tunery.registry.errors import InvalidInput, UnknownName

__all__ = ["Decoder", "Message", "Rendered", "Renderer"]


_FINAL = "\ufdd2"
"""Marks the end of a message; no character of any text."""


class Rendered(msgspec.Struct, frozen=True):
    """A training example: `ids` and, for each of them, whether the model is trained to produce it."""

    ids: list[int]
    trained: list[bool]


class Renderer:
    """Renders for the base in `folder` (a folder with tokenizer.json and whatever transformers saves beside it).

    `now` is what a template's `strftime_now` sees; `options` are extra template variables (such as `enable_thinking`).
    """

    def __init__(
        self, folder: Path, *, now: Callable[[], datetime] = datetime.now, options: Mapping[str, Any] | None = None
    ) -> None:
        self._folder = Path(folder)
        self._tokens = BaseTokenizer(self._folder)
        self._options = dict(options or {})
        source = find_template(self._folder, self._tokens.settings)
        self.template = source and ChatTemplate(source, tokens=self._tokens.named, now=now)

    @property
    def template_sha256(self) -> str | None:
        """The template's identity for manifests, or None when the base has none."""
        return self.template.sha256 if self.template else None

    @property
    def vocab_size(self) -> int:
        """How many token ids the tokenizer knows."""
        return self._tokens.size

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """BaseTokenizer that end a turn: the tokenizer's and the model's end of sequence, and the template's end-of-turn token."""
        found = [self._tokens.id_of(self._tokens.named.get("eos_token", "")), self.end_of_turn]
        for name in ("generation_config.json", "config.json"):
            value = read_json(self._folder / name).get("eos_token_id")
            found += value if isinstance(value, list) else [value]
        return tuple(sorted({int(number) for number in found if number is not None}))

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token the template writes after an answer, or the end of sequence where it writes none."""
        eos = self._tokens.id_of(self._tokens.named.get("eos_token", ""))
        if not self.template:
            return eos
        messages = [{"role": "user", "content": "0"}, {"role": "assistant", "content": PROBES[0]}]
        try:
            text = self._render(messages)
        except InvalidInput:
            return eos
        match = self._tokens.find_special(text, text.rindex(PROBES[0]) if PROBES[0] in text else len(text))
        return self._tokens.id_of(match[0]) if match else eos

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template shows the functions that a model may call; where it does not, they are written out as text."""
        try:
            return PROBE["function"]["name"] in self._render([{"role": "user", "content": "0"}], tools=[PROBE])
        except InvalidInput:
            return False

    @cached_property
    def takes_reasoning(self) -> bool:
        """Whether the template writes an answer's `reasoning_content`."""
        asked: Message = {"role": "user", "content": "0"}
        answer: Message = {"role": "assistant", "content": "0", "reasoning_content": PROBES[0]}
        try:
            return PROBES[0] in self._render([asked, answer])
        except InvalidInput:
            return False

    @cached_property
    def call_style(self) -> CallStyle:
        """How the model is asked to write its calls."""
        return call_style(self.template.source) if self.template and self.takes_tools else "hermes"

    def prepare(self) -> None:
        """Work out now what the first prompt would wait for."""
        self._tokens.least("")
        _ = self.stop_ids, self.takes_tools

    def control_ids(self, texts: Iterable[str]) -> dict[str, int]:
        """Those of `texts` that are control tokens, with their ids."""
        found = ((text, self._tokens.id_of(text)) for text in texts)
        return {text: number for text, number in found if number in self._tokens.special_ids}

    # -- serving ----------------------------------------------------------------------------------------------------------

    def prompt_ids(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        check: Check | None = None,
    ) -> list[int]:
        """The prompt the model sees for a conversation; raise InvalidInput when the base's template refuses it.

        `check` is told how many tokens there are at least, before they are counted and while they are. With `continue_final` it ends where the last message's content does. A template that does not know functions gets them as text.
        """
        messages, tools = self._prepared(messages, tools)
        if not self.template:
            return self._tokens.encode(self._tokens.unmask(_raw_prompt(messages)), bos=True, check=check)
        if continue_final:
            messages = [*messages[:-1], _marked(messages[-1])]
        text = self._render(messages, prompt=add_generation_prompt and not continue_final, tools=tools)
        if check:
            check(self._tokens.least(text))
        cuts = _cuts(self._turns(messages, text, tools).values())
        end = _final(text) if continue_final else len(text)
        return self._tokens.encode_cut(text[:end], [cut for cut in cuts if cut <= end], check)[0]

    def with_options(self, options: Mapping[str, Any]) -> Renderer:
        """This renderer with more variables for its template; raise InvalidInput for one that the template does not read."""
        if not options:
            return self
        known = self.template.variables if self.template else frozenset()
        for name in options:
            if name not in known:
                raise UnknownName(
                    "variable of this base's chat template", name[:80], known, param="chat_template_kwargs"
                )
        made = copy(self)
        made._options = self._options | _mapped(options, self._tokens.mask)
        return made

    def encode(self, text: str, *, special: bool = True, check: Check | None = None) -> list[int]:
        """Ids of raw text; if `special`, with the tokens the tokenizer puts around any text (such as one beginning-of-sequence)."""
        return self._tokens.encode(text, bos=special, check=check)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids."""
        return self._tokens.decode(ids, skip_special=skip_special)

    def token_bytes(self, number: int) -> bytes:
        """The exact bytes of one token, which may be part of a character only."""
        return self._tokens.bytes_of(number)

    def is_control(self, number: int) -> bool:
        """Whether a token is a control token, which is not part of any text."""
        return number in self._tokens.special_ids

    def decoder(self, *, skip_special: bool = True) -> Decoder:
        """An incremental detokenizer: `.push(token) -> str`, then `.flush() -> str`."""
        return Decoder(self._tokens, skip_special=skip_special)

    def special_tokens_in(self, messages: Sequence[Message]) -> list[str]:
        """Control tokens spelled out in the messages' contents; they are encoded as plain text, never as control tokens."""
        texts = [text for message in messages for text in _texts(message)]
        return sorted({name for text in texts for name in self._tokens.special if name in text})

    # -- training ---------------------------------------------------------------------------------------------------------

    def example(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None) -> Rendered:
        """The one example of a conversation; raise InvalidInput where the template needs one example per turn."""
        found = self.examples(messages, tools=tools)
        if len(found) != 1:
            raise InvalidInput(
                "this base's template shows each answer its own prompt: use examples()", code="template_refused"
            )
        return found[0]

    def examples(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[Rendered]:
        """Token ids with every assistant turn trained, calls of functions included, but those of weight 0.

        One example when each turn's serving prompt is the beginning of the rendered conversation; one per assistant turn where
        a template shows a different prompt for each (it drops earlier reasoning, say, or opens a block only when generating).
        """
        messages, tools = self._prepared(messages, tools)
        spoken = [index for index, message in enumerate(messages) if _is_trained(message)]
        messages = [{name: item for name, item in message.items() if name != "weight"} for message in messages]
        if not spoken:
            raise InvalidInput(
                "no assistant message with a weight above 0: there is nothing to train on; add one",
                code="no_trainable_token",
            )
        self._check_reasoning([messages[index] for index in spoken])
        if not self.template:
            return [self._raw_example(messages)]
        text = self._render(messages, tools=tools)
        found = self._turns(messages, text, tools)
        turns = [turn for index in spoken if (turn := found[index])]
        if len(turns) == len(spoken):
            end = turns[-1].end
            # Answers that are not trained are cut off too, as they are in the prompts of the later ones.
            earlier = [turn for turn in found.values() if turn and turn.end <= end]
            return [self._spans(text[:end], turns, earlier)]
        return [self._lone_example(messages[: index + 1], tools) for index in spoken]

    def _check_reasoning(self, answers: Sequence[Message]) -> None:
        """Refuse to train on reasoning that the template would leave out without a word."""
        if any(message.get("reasoning_content") for message in answers) and not self.takes_reasoning:
            raise InvalidInput(
                "an answer has reasoning_content, which this base's chat template does not write; put it into content, or drop it",
                code="template_refused",
            )

    def _spans(self, text: str, turns: Sequence[Turn], others: Iterable[Turn | None]) -> Rendered:
        """The example of `turns` in a text that ends with the last of them; `others` are cut off as well."""
        cuts = _cuts([*turns, *others])
        ids, places = self._tokens.encode_cut(text, cuts)
        at = dict(zip(cuts, places, strict=True))
        trained = [False] * len(ids)
        for turn in turns:
            trained[at[turn.start] : at[turn.end]] = [True] * (at[turn.end] - at[turn.start])
        if not turns[-1].stops and self.end_of_turn is not None:
            ids, trained = [*ids, self.end_of_turn], [*trained, True]
        return Rendered(ids, trained)

    def _lone_example(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> Rendered:
        """The last answer after exactly the prompt that serving would send for it."""
        prompt = self._render(messages[:-1], prompt=True, tools=tools)
        text = self._render(messages, tools=tools)
        answers: list[Message] = [{"role": "assistant", "content": probe} for probe in PROBES]
        probes = [self._render([*messages[:-1], answer], tools=tools) for answer in answers]
        begin = min(shared_length(prompt, probe) for probe in probes)
        if shared_length(text, probes[0]) < begin:
            raise InvalidInput(
                "the base's chat template renders the conversation before this answer differently once it is there; "
                "train on single-turn rows with this base",
                code="template_refused",
            )
        whole = prompt + text[begin:]
        end, stops = self._finder(messages, whole, tools).end(whole, len(prompt), len(whole), messages[-1])
        earlier = self._turns(messages[:-1], prompt, tools).values()
        return self._spans(whole[:end], [Turn(len(prompt), end, stops)], earlier)

    def _raw_example(self, messages: Sequence[Message]) -> Rendered:
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise InvalidInput(
                "the base has no chat template, so a row must be one prompt and one completion", code="no_template"
            )
        prompt, answer = (self._tokens.unmask(str(message["content"])) for message in messages)
        before = self._tokens.encode(prompt, bos=True)
        after = self._tokens.encode_cut(prompt + answer, [len(prompt)])
        ids = after[0][after[1][0] :] + ([self.end_of_turn] if self.end_of_turn is not None else [])
        return Rendered(before + ids, [False] * len(before) + [True] * len(ids))

    # -- rendering --------------------------------------------------------------------------------------------------------

    def _turns(
        self, messages: Sequence[Message], text: str, tools: Sequence[Mapping[str, Any]] | None
    ) -> Mapping[int, Turn | None]:
        """Where the assistant messages' turns lie in `text`."""
        return self._finder(messages, text, tools).find()

    def _finder(self, messages: Sequence[Message], text: str, tools: Sequence[Mapping[str, Any]] | None) -> TurnFinder:
        def render(some: Sequence[Message], prompt: bool) -> str:
            return self._render(some, prompt=prompt, tools=tools)

        return TurnFinder(messages, text, render=render, tokens=self._tokens, stop_ids=self.stop_ids)

    def _render(
        self, messages: Sequence[Message], *, prompt: bool = False, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        if not self.template:
            raise InvalidInput("the base has no chat template; send plain text", code="no_template")
        return self.template.render(messages, add_generation_prompt=prompt, tools=tools, options=self._options)

    def _prepared(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """Messages and functions as the template takes them, control tokens in them turned into stand-ins."""
        messages = [self._known_role(plain_message(message)) for message in messages]
        tools = [plain_tool(tool) for tool in tools or ()]
        if not self.takes_tools and (tools or any(message.get("tool_calls") for message in messages)):
            messages, tools = as_text(messages, tools), []
        elif self.call_style == "mistral":
            messages = with_short_ids(messages)
        mask = self._tokens.mask
        return [_mapped_message(message, mask) for message in messages], _mapped(tools, mask) or None

    def _known_role(self, message: Message) -> Message:
        """OpenAI's developer is the system of a template that does not name it."""
        if message["role"] != "developer" or (self.template and "developer" in self.template.source):
            return message
        return {**message, "role": "system"}


def _is_trained(message: Message) -> bool:
    return bool(message["role"] == "assistant" and message.get("weight", 1) != 0)


def _marked(message: Message) -> Message:
    """The message with a mark at the end of its content, which shows where the template writes that."""
    if not message["content"] or message.get("tool_calls"):
        raise InvalidInput("the last message has no text to go on with", param="continue_final_message")
    return {**message, "content": message["content"] + _FINAL}


def _final(text: str) -> int:
    """Where the mark stands."""
    if _FINAL not in text:
        raise InvalidInput(
            "this base's chat template does not write the last message as it is", param="continue_final_message"
        )
    return text.rindex(_FINAL)


def _cuts(turns: Iterable[Turn | None]) -> list[int]:
    """Where turns begin and end, in order."""
    return sorted({cut for turn in turns if turn for cut in (turn.start, turn.end)})


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with every text in it changed, names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(name)): _mapped(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value


def _mapped_message(message: Message, change: Callable[[str], str]) -> Message:
    """The message with every text in it changed except its role, which templates compare."""
    return {name: item if name == "role" else _mapped(item, change) for name, item in message.items()}


def _texts(message: Message) -> list[str]:
    found: list[str] = []

    def keep(text: str) -> str:
        found.append(text)
        return text

    _mapped_message(message, keep)
    return found


def _raw_prompt(messages: Sequence[Message]) -> str:
    if len(messages) != 1 or messages[0]["role"] != "user":
        raise InvalidInput(
            "the base has no chat template: send one user message, or use the completions endpoint",
            code="no_template",
            param="messages",
        )
    return str(messages[0]["content"])
