"""The one way from messages to token ids, for serving prompts and for training examples, and back to text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunery.plugins.data.render.conversation import Message, message_texts
from tunery.plugins.data.render.cuts import encode_with_cuts
from tunery.plugins.data.render.detokenizer import Detokenizer
from tunery.plugins.data.render.examples import RenderedExample, build_examples
from tunery.plugins.data.render.template_renderer import TemplateRenderer, Tools
from tunery.plugins.data.render.tokenizer import LengthCheck
from tunery.plugins.data.render.turns import turn_edges
from tunery.registry.errors import InvalidInput

__all__ = ["Renderer"]

_FINAL = "\ufdd2"
"""Marks the end of the last message; not a character of any text."""


class Renderer(TemplateRenderer):
    """Renders and tokenizes for the base in `folder`: a folder with tokenizer.json and whatever transformers saves
    beside it."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids in the tokenizer."""
        return self.tokenizer.size

    def prepare(self) -> None:
        """Compute now what the first prompt would otherwise wait for."""
        self.tokenizer.min_length("")
        _ = self.stop_ids, self.takes_tools

    def control_ids(self, texts: Iterable[str]) -> dict[str, int]:
        """Those of `texts` that are control tokens, with their ids."""
        ids = ((text, self.tokenizer.id_of(text)) for text in texts)
        return {text: number for text, number in ids if number in self.tokenizer.special_ids}

    # -- serving -------------------------------------------------------------------------------------------------------

    def prompt_ids(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        tools: Tools | None = None,
        check_length: LengthCheck | None = None,
    ) -> list[int]:
        """Token ids of the prompt for a conversation. Raises InvalidInput where the base's template refuses it.

        With `continue_final` the prompt ends where the last message's content does. A template that does not know tools
        gets them as text. `check_length` is called with a lower bound of the number of tokens, before and while they
        are counted.
        """
        messages, tools = self.prepare_messages(messages, tools)
        if not self.template:
            return self.tokenizer.encode(
                self.tokenizer.special.unmask(_raw_prompt(messages)), bos=True, check_length=check_length
            )
        if continue_final:
            messages = [*messages[:-1], _marked(messages[-1])]
        text = self.render(messages, prompt=add_generation_prompt and not continue_final, tools=tools)
        if check_length:
            check_length(self.tokenizer.min_length(text))
        cuts = turn_edges(self.find_turns(messages, text, tools).values())
        end = _final(text) if continue_final else len(text)
        return encode_with_cuts(self.tokenizer, text[:end], [cut for cut in cuts if cut <= end], check_length)[0]

    def encode(self, text: str, *, special: bool = True, check_length: LengthCheck | None = None) -> list[int]:
        """Ids of raw text; with `special`, including the tokens that the tokenizer puts around a text, such as a BOS
        token."""
        return self.tokenizer.encode(text, bos=special, check_length=check_length)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(ids, skip_special=skip_special)

    def token_bytes(self, number: int) -> bytes:
        """The exact bytes of a token, which may be part of a character only."""
        return self.tokenizer.bytes_of(number)

    def is_control(self, number: int) -> bool:
        """Whether a token is a control token, which belongs to no text."""
        return number in self.tokenizer.special_ids

    def detokenizer(self, *, skip_special: bool = True) -> Detokenizer:
        """An incremental detokenizer: `.push(token) -> str`, then `.flush() -> str`."""
        return Detokenizer(self.tokenizer, skip_special=skip_special)

    def special_tokens_in(self, messages: Sequence[Message]) -> list[str]:
        """Control tokens spelled out in the messages' contents; they are encoded as plain text, never as control
        tokens."""
        texts = [text for message in messages for text in message_texts(message)]
        return sorted({name for text in texts for name in self.tokenizer.special.texts if name in text})

    # -- training ------------------------------------------------------------------------------------------------------

    def example(self, messages: Sequence[Message], *, tools: Tools | None = None) -> RenderedExample:
        """The only example of a conversation. Raises InvalidInput where the template needs one example per turn."""
        examples = self.examples(messages, tools=tools)
        if len(examples) != 1:
            raise InvalidInput(
                "this base's template shows each answer its own prompt: use examples()", code="template_refused"
            )
        return examples[0]

    def examples(self, messages: Sequence[Message], *, tools: Tools | None = None) -> list[RenderedExample]:
        """The training examples of a conversation: every assistant turn is trained, tool calls included, but those of
        weight 0.

        One example where each turn's serving prompt is the beginning of the rendered conversation; one per assistant
        turn where the template shows a different prompt for each (it drops earlier reasoning, say, or opens a block
        only when generating). Raises InvalidInput where nothing is trained, or the template refuses the messages.
        """
        return build_examples(self, messages, tools)


def _marked(message: Message) -> Message:
    """The message with a mark at the end of its content, to find where the template writes it."""
    if not message["content"] or message.get("tool_calls"):
        raise InvalidInput("the last message has no text to go on with", param="continue_final_message")
    return {**message, "content": message["content"] + _FINAL}


def _final(text: str) -> int:
    """The position of the mark."""
    if _FINAL not in text:
        raise InvalidInput(
            "this base's chat template does not write the last message as it is", param="continue_final_message"
        )
    return text.rindex(_FINAL)


def _raw_prompt(messages: Sequence[Message]) -> str:
    if len(messages) != 1 or messages[0]["role"] != "user":
        raise InvalidInput(
            "the base has no chat template: send one user message, or use the completions endpoint",
            code="no_template",
            param="messages",
        )
    return str(messages[0]["content"])
