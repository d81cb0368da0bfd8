"""Render conversations through a base's chat template: what the template supports, its text, and where the turns lie in
it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tunery.plugins.data.render.conversation import Message, map_message, map_texts, plain_message, plain_tool
from tunery.plugins.data.render.template import ChatTemplate, find_template
from tunery.plugins.data.render.tokenizer import BaseTokenizer, read_json
from tunery.plugins.data.render.tools import PROBE, CallStyle, as_text, call_style, with_short_ids
from tunery.plugins.data.render.turns import PROBES, Turn, TurnFinder
from tunery.registry.errors import InvalidInput, UnknownName

__all__ = ["TemplateRenderer"]

Tools = Sequence[Mapping[str, Any]]


class TemplateRenderer:
    """The chat template of the base in `folder`, with its tokenizer.

    `now` is what the template's `strftime_now` sees; `options` are extra template variables, such as `enable_thinking`.
    """

    def __init__(
        self, folder: Path, *, now: Callable[[], datetime] = datetime.now, options: Mapping[str, Any] | None = None
    ) -> None:
        self._folder = Path(folder)
        self.tokenizer = BaseTokenizer(self._folder)
        self._options = dict(options or {})
        source = find_template(self._folder, self.tokenizer.settings)
        self.template = ChatTemplate(source, tokens=self.tokenizer.named, now=now) if source else None

    @property
    def template_sha256(self) -> str | None:
        """The template's SHA-256 in hex, its identity in manifests; None where the base has no template."""
        return self.template.sha256 if self.template else None

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn: the end of sequence of tokenizer and model, and the template's end-of-turn token.

        Ascending.
        """
        ids = [self.tokenizer.id_of(self.tokenizer.named.get("eos_token", "")), self.end_of_turn]
        for name in ("generation_config.json", "config.json"):
            value = read_json(self._folder / name).get("eos_token_id")
            ids += value if isinstance(value, list) else [value]
        return tuple(sorted({int(number) for number in ids if number is not None}))

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token that the template writes after an answer, or the end of sequence where it writes none."""
        eos = self.tokenizer.id_of(self.tokenizer.named.get("eos_token", ""))
        if not self.template:
            return eos
        messages = [{"role": "user", "content": "0"}, {"role": "assistant", "content": PROBES[0]}]
        try:
            text = self.render(messages)
        except InvalidInput:
            return eos
        match = self.tokenizer.special.find(text, text.rindex(PROBES[0]) if PROBES[0] in text else len(text))
        return self.tokenizer.id_of(match[0]) if match else eos

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template shows tools; where it does not, they are written out as text."""
        try:
            return PROBE["function"]["name"] in self.render([{"role": "user", "content": "0"}], tools=[PROBE])
        except InvalidInput:
            return False

    @cached_property
    def takes_reasoning(self) -> bool:
        """Whether the template writes an answer's `reasoning_content`."""
        question: Message = {"role": "user", "content": "0"}
        answer: Message = {"role": "assistant", "content": "0", "reasoning_content": PROBES[0]}
        try:
            return PROBES[0] in self.render([question, answer])
        except InvalidInput:
            return False

    @cached_property
    def call_style(self) -> CallStyle:
        """The format in which the model writes tool calls."""
        return call_style(self.template.source) if self.template and self.takes_tools else "hermes"

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """This renderer with more variables for its template.

        Raises UnknownName for one that the template does not read.
        """
        if not options:
            return self
        variables = self.template.variables if self.template else frozenset()
        for name in options:
            if name not in variables:
                raise UnknownName(
                    "variable of this base's chat template", name[:80], variables, param="chat_template_kwargs"
                )
        renderer = copy(self)
        renderer._options = self._options | map_texts(options, self.tokenizer.special.mask)
        return renderer

    def render(self, messages: Sequence[Message], *, prompt: bool = False, tools: Tools | None = None) -> str:
        """The text of prepared messages; `prompt` adds the generation prompt.

        Raises InvalidInput without a template, or where it refuses.
        """
        if not self.template:
            raise InvalidInput("the base has no chat template; send plain text", code="no_template")
        return self.template.render(messages, add_generation_prompt=prompt, tools=tools, options=self._options)

    def prepare_messages(
        self, messages: Sequence[Message], tools: Tools | None
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """Messages and tools as the template takes them, with the control tokens that they spell masked."""
        messages = [self._known_role(plain_message(message)) for message in messages]
        tools = [plain_tool(tool) for tool in tools or ()]
        if not self.takes_tools and (tools or any(message.get("tool_calls") for message in messages)):
            messages, tools = as_text(messages, tools), []
        elif self.call_style == "mistral":
            messages = with_short_ids(messages)
        mask = self.tokenizer.special.mask
        return [map_message(message, mask) for message in messages], map_texts(tools, mask) or None

    def find_turns(self, messages: Sequence[Message], text: str, tools: Tools | None) -> Mapping[int, Turn | None]:
        """The turn of each assistant message in `text`, by its index; None where it cannot be found."""
        return self.turn_finder(messages, text, tools).find()

    def turn_finder(self, messages: Sequence[Message], text: str, tools: Tools | None) -> TurnFinder:
        """A finder of the turns of prepared messages in their rendered text."""

        def render(some: Sequence[Message], prompt: bool) -> str:
            return self.render(some, prompt=prompt, tools=tools)

        return TurnFinder(messages, text, render=render, tokenizer=self.tokenizer, stop_ids=self.stop_ids)

    def _known_role(self, message: Message) -> Message:
        """Turn the role developer into system for a template that does not know it."""
        if message["role"] != "developer" or (self.template and "developer" in self.template.source):
            return message
        return {**message, "role": "system"}
