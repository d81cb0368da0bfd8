"""Builds the items of an output from the parts of a chat's choice, and says as events what each part adds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunery.gateway.api.response.chat_choice import ContentPart
from tunery.gateway.api.schemas.items import FunctionCallItem, OutputItem, OutputMessage, OutputText, Status
from tunery.gateway.api.schemas.responses import TokenLogprob, ToolCall

__all__ = ["Event", "OutputBuilder"]

Event = dict[str, Any]
"""An event without its sequence number."""


class OutputBuilder:
    """The items of one response: a message for each stretch of text, and an item for each call.

    `made` is what the ids of the items have in common. Log-probabilities go to the text that follows them; those of
    the tokens that write a call are left out.
    """

    def __init__(self, made: str) -> None:
        self._made = made
        self._texts: list[str] = []
        self._writing = False
        self._logprobs: list[TokenLogprob] = []
        self._waiting: list[TokenLogprob] = []
        self.items: list[OutputItem] = []

    def push(self, parts: list[ContentPart], logprobs: list[TokenLogprob]) -> Iterator[Event]:
        """The events of these parts."""
        self._waiting += logprobs
        for part in parts:
            yield from self._text(part) if isinstance(part, str) else self._call(part)

    def end(self, status: Status) -> Iterator[Event]:
        """The events that end the output; without any text or call it is an empty message."""
        if not self.items and not self._writing:
            yield from self._open()
        yield from self._close(status)

    def _text(self, text: str) -> Iterator[Event]:
        if not self._writing:
            yield from self._open()
        self._texts.append(text)
        logprobs, self._waiting = self._waiting, []
        self._logprobs += logprobs
        yield {"type": "response.output_text.delta", **self._place(), "delta": text, "logprobs": logprobs}

    def _call(self, call: ToolCall) -> Iterator[Event]:
        yield from self._close("completed")
        self._waiting = []
        index, item_id, arguments = len(self.items), self._id("fc"), call.function.arguments
        where = {"item_id": item_id, "output_index": index}

        def item(status: Status, arguments: str) -> FunctionCallItem:
            return FunctionCallItem(
                id=item_id, status=status, call_id=str(call.id), name=str(call.function.name), arguments=arguments
            )

        done = item("completed", arguments)
        yield {"type": "response.output_item.added", "output_index": index, "item": item("in_progress", "")}
        yield {"type": "response.function_call_arguments.delta", **where, "delta": arguments}
        yield {"type": "response.function_call_arguments.done", **where, "name": done.name, "arguments": arguments}
        yield {"type": "response.output_item.done", "output_index": index, "item": done}
        self.items.append(done)

    def _open(self) -> Iterator[Event]:
        """Begin a message."""
        self._writing = True
        message = OutputMessage(id=self._id("msg"), status="in_progress", content=[])
        yield {"type": "response.output_item.added", "output_index": len(self.items), "item": message}
        yield {"type": "response.content_part.added", **self._place(), "part": OutputText(text="")}

    def _close(self, status: Status) -> Iterator[Event]:
        """End the message, if one is open."""
        if not self._writing:
            return
        part = OutputText(text="".join(self._texts), logprobs=self._logprobs + self._waiting)
        self._writing, self._texts, self._logprobs, self._waiting = False, [], [], []
        message = OutputMessage(id=self._id("msg"), status=status, content=[part])
        yield {"type": "response.output_text.done", **self._place(), "text": part.text, "logprobs": part.logprobs}
        yield {"type": "response.content_part.done", **self._place(), "part": part}
        yield {"type": "response.output_item.done", "output_index": len(self.items), "item": message}
        self.items.append(message)

    def _place(self) -> Event:
        """Where the text of the message that is being written stands."""
        return {"item_id": self._id("msg"), "output_index": len(self.items), "content_index": 0}

    def _id(self, kind: str) -> str:
        return f"{kind}_{self._made}_{len(self.items)}"
