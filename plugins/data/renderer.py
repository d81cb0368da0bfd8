"""Owns the one way from messages to token ids, for training labels and for serving prompts; refuses to guess by markers.

An assistant turn's trained span starts where the serving prompt for it ends: at the end of `messages[:i]` rendered with the
generation prompt. It ends with the end-of-turn token the template writes after the content. So whatever template a base has, the
tokens before the first trained one are exactly those the server sends, and the model learns to stop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from os.path import commonprefix
from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.data.template import ChatTemplate, Message, find_template
from tunery.plugins.data.tokens import Decoder, Tokens, read_json
from tunery.plugins.data.tools import PROBE, CallStyle, as_text, call_style, with_short_ids
from tunery.registry.errors import InvalidInput

__all__ = ["Decoder", "Message", "Rendered", "Renderer"]

# Two answers that share no first character show where a turn's own text begins.
_PROBES = ("A probe", "0 probe")


class Rendered(msgspec.Struct, frozen=True):
    """A training example: `ids` and, for each of them, whether the model is trained to produce it."""

    ids: list[int]
    trained: list[bool]


class _Turn(msgspec.Struct, frozen=True):
    """An assistant turn in the rendered text: characters `start` to `end`; `stops` when `end` is after an end-of-turn token."""

    start: int
    end: int
    stops: bool


class Renderer:
    """Renders for the base in `folder` (a folder with tokenizer.json and whatever transformers saves beside it).

    `now` is what a template's `strftime_now` sees; `options` are extra template variables (such as `enable_thinking`).
    """

    def __init__(
        self, folder: Path, *, now: Callable[[], datetime] = datetime.now, options: Mapping[str, Any] | None = None
    ) -> None:
        self._folder = Path(folder)
        self._tokens = Tokens(self._folder)
        self._options = dict(options or {})
        source = find_template(self._folder, self._tokens.settings)
        self.template = source and ChatTemplate(source, tokens=self._tokens.named, now=now)

    @property
    def template_sha256(self) -> str | None:
        """The template's identity for manifests, or None when the base has none."""
        return hashlib.sha256(self.template.source.encode()).hexdigest() if self.template else None

    @property
    def vocab_size(self) -> int:
        """How many token ids the tokenizer knows."""
        return self._tokens.size

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn: the tokenizer's and the model's end of sequence, and the template's end-of-turn token."""
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
        messages = [{"role": "user", "content": "0"}, {"role": "assistant", "content": _PROBES[0]}]
        try:
            text = self._render(messages)
        except InvalidInput:
            return eos
        match = self._tokens.find_special(text, text.rindex(_PROBES[0]) if _PROBES[0] in text else len(text))
        return self._tokens.id_of(match[0]) if match else eos

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template shows the functions that a model may call; where it does not, they are written out as text."""
        try:
            return PROBE["function"]["name"] in self._render([{"role": "user", "content": "0"}], tools=[PROBE])
        except InvalidInput:
            return False

    @cached_property
    def call_style(self) -> CallStyle:
        """How the model is asked to write its calls."""
        return call_style(self.template.source) if self.template and self.takes_tools else "hermes"

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
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The prompt the model sees for a conversation; raise InvalidInput when the base's template refuses it.

        Calls in `messages` have their arguments as objects. A template that does not know functions gets them as text.
        """
        messages, tools = self._prepared(messages, tools)
        if not self.template:
            return self._tokens.encode(self._tokens.unmask(_raw_prompt(messages)), bos=True)
        text = self._render(messages, prompt=add_generation_prompt, tools=tools)
        cuts: set[int] = set()
        for index, message in enumerate(messages):
            turn = self._turn(messages, index, text, tools) if message["role"] == "assistant" else None
            cuts |= {turn.start, turn.end} if turn else set()
        return self._tokens.encode_cut(text, sorted(cuts))[0]

    def encode(self, text: str) -> list[int]:
        """Ids of raw text, with the tokens the tokenizer puts around any text (such as one beginning-of-sequence)."""
        return self._tokens.encode(text, bos=True)

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
        if not self.template:
            return [self._raw_example(messages)]
        text = self._render(messages, tools=tools)
        turns = [self._turn(messages, index, text, tools) for index in spoken]
        whole = [turn for turn in turns if turn is not None]
        if len(whole) == len(turns):
            last = whole[-1]
            return [self._spans(text[: last.end], whole, add_end=not last.stops)]
        return [self._lone_example(messages[: index + 1], tools) for index in spoken]

    def _spans(self, text: str, turns: Sequence[_Turn], *, add_end: bool) -> Rendered:
        cuts = sorted({cut for turn in turns for cut in (turn.start, turn.end)})
        ids, places = self._tokens.encode_cut(text, cuts)
        at = dict(zip(cuts, places, strict=True))
        trained = [False] * len(ids)
        for turn in turns:
            trained[at[turn.start] : at[turn.end]] = [True] * (at[turn.end] - at[turn.start])
        if add_end and self.end_of_turn is not None:
            ids, trained = [*ids, self.end_of_turn], [*trained, True]
        return Rendered(ids, trained)

    def _lone_example(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> Rendered:
        """The last answer after exactly the prompt that serving would send for it."""
        prompt = self._render(messages[:-1], prompt=True, tools=tools)
        text = self._render(messages, tools=tools)
        answers: list[Message] = [{"role": "assistant", "content": probe} for probe in _PROBES]
        probes = [self._render([*messages[:-1], answer], tools=tools) for answer in answers]
        begin = min(len(commonprefix([prompt, probe])) for probe in probes)
        if len(commonprefix([text, probes[0]])) < begin:
            raise InvalidInput(
                "the base's chat template renders the conversation before this answer differently once it is there; "
                "train on single-turn rows with this base",
                code="template_refused",
            )
        whole = prompt + text[begin:]
        end, stops = self._end(whole, len(prompt), len(whole), messages[-1])
        return self._spans(whole[:end], [_Turn(len(prompt), end, stops)], add_end=not stops)

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

    # -- finding turns in the rendered text -------------------------------------------------------------------------------

    def _turn(
        self, messages: Sequence[Message], index: int, text: str, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> _Turn | None:
        """Where assistant turn `index` lies in `text`, or None when `text` does not begin with its serving prompt and it."""
        start = self._start(messages, index, tools)
        if start is None or not text.startswith(start):
            return None
        try:
            alone = self._render(messages[: index + 1], tools=tools)
        except InvalidInput:
            alone = text
        upto = commonprefix([text, alone])
        # An answer that is shown otherwise once the conversation goes on (without its reasoning, say) is not whole in `text`.
        if len(upto) < max(len(start), self._end(alone, len(start), len(alone), messages[index])[0]):
            return None
        end, stops = self._end(text, len(start), len(upto), messages[index])
        return _Turn(len(start), end, stops)

    def _start(
        self, messages: Sequence[Message], index: int, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str | None:
        try:
            return self._render(messages[:index], prompt=True, tools=tools)
        except InvalidInput:
            if index:
                return None
        # Some templates refuse an empty conversation: what two different answers share is what comes before an answer.
        return commonprefix([self._render([{"role": "assistant", "content": probe}], tools=tools) for probe in _PROBES])

    def _end(self, text: str, start: int, stop: int, message: Message) -> tuple[int, bool]:
        """The end of the turn in `text[start:stop]`: after the first control token behind its content."""
        content = str(message.get("content") or "").strip()
        at = self._find(text, content, start, stop)
        behind = at + len(content) if at >= 0 else start
        match = self._tokens.find_special(text, behind)
        while message.get("tool_calls") and match and self._tokens.id_of(match[0]) not in self.stop_ids:
            # Calls may be marked by control tokens of their own, which end nothing.
            match = self._tokens.find_special(text, match.end())
        if message.get("tool_calls") and not (match and match.end() <= stop):
            return stop, False
        if match and match.end() <= stop:
            return match.end(), True
        return (behind if at >= 0 else stop), False

    def _find(self, text: str, content: str, start: int, stop: int) -> int:
        """Where `content` stands in the turn, or -1. A short answer may also be spelled inside a control token."""
        if not content:
            return -1
        first = start + len(text[start:stop]) - len(text[start:stop].lstrip())
        if text.startswith(content, first):
            return first
        control = [match.span() for match in self._tokens.all_special(text[start:stop])]
        at = text.rfind(content, start, stop)
        while at >= 0 and any(low < at + len(content) - start and at - start < high for low, high in control):
            at = text.rfind(content, start, at + len(content) - 1)
        return at

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
        if not self.takes_tools and (tools or any(message.get("tool_calls") for message in messages)):
            messages, tools = as_text(messages, tools or ()), None
        elif self.call_style == "mistral":
            messages = with_short_ids(messages)
        return self._safe(messages), _mapped(list(tools), self._tokens.mask) if tools else None

    def _safe(self, messages: Sequence[Message]) -> list[Message]:
        """Copies of the messages with text parts joined and control tokens in contents turned into stand-ins."""
        return [_mapped_message(_joined(message), self._tokens.mask) for message in messages]


def _is_trained(message: Message) -> bool:
    return bool(message["role"] == "assistant" and message.get("weight", 1) != 0)


def _joined(message: Message) -> Message:
    """The message with a list of text parts as one text."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": "".join(part["text"] for part in content if part.get("type") == "text")}


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
