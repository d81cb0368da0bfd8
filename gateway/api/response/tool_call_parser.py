"""Separates tool calls from text while a model writes its answer. Whatever is not a well-formed call stays text.

Three styles are understood, whichever one the base was asked for: `<tool_call>{"name": …, "arguments": …}</tool_call>`
(Hermes), `[TOOL_CALLS] [{"name": …, "arguments": …}]` (Mistral), and, at the beginning of the answer, bare `{"name": …,
"parameters": …}`, several separated by semicolons (Llama 3). A call names a function that was offered and has an object
of arguments. White space next to a call belongs to the call. The result does not depend on how the text is cut into
pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator

import msgspec

from tunery.gateway.api.request.tool_call_grammar import HERMES, HERMES_END, LLAMA, MISTRAL

__all__ = ["ParsedCall", "ToolCallParser"]

_OPENERS = {HERMES: "{", MISTRAL: "[", LLAMA: "{"}
_BETWEEN = re.compile(r"[\s;]*")


class ParsedCall(msgspec.Struct, frozen=True):
    """A call: the function's name, and its arguments as the JSON text that the model wrote."""

    name: str
    arguments: str


class _WrittenCall(msgspec.Struct):
    """A call as models write it."""

    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"")
    parameters: msgspec.Raw = msgspec.Raw(b"")


Parsed = str | ParsedCall


class ToolCallParser:
    """Parses one answer. Only functions in `names` can be called, and only the first call counts unless `parallel`.

    With `only_calls` the answer consists of calls, so what is left at its end is an unfinished call and not text.
    """

    def __init__(self, names: Collection[str], *, parallel: bool = True, only_calls: bool = False) -> None:
        self._names, self._parallel, self._only_calls = names, parallel, only_calls
        self._held = ""
        self._step: Callable[[], Iterator[Parsed] | None] = self._beginning
        self._value = _JsonScanner()
        self._mark = ""
        self._space = ""
        self._after_call = False
        self.calls = 0

    def push(self, text: str) -> list[Parsed]:
        """Take the next piece of the answer and return what is certain now."""
        self._held += text
        certain: list[Parsed] = []
        while self._held and (parsed := self._step()) is not None:
            certain += self._trimmed(parsed)
        return certain

    def end(self) -> list[Parsed]:
        """Return what was held back; the answer is complete."""
        if self._only_calls:
            return []
        rest = [*self._trimmed(iter((self._take(len(self._held)),)))]
        return rest if self._after_call else [*rest, *filter(None, (self._space,))]

    # Each step chooses the next step and returns what is certain, or returns None when it needs more text. -----------

    def _beginning(self) -> Iterator[Parsed] | None:
        """At the beginning, or right after a bare call: another bare call, or anything."""
        match = _BETWEEN.match(self._held) if self.calls else None
        start = match.end() if match else len(self._held) - len(self._held.lstrip())
        if start == len(self._held):
            return None
        if self._held[start] != "{":
            self._step = self._text
            return iter(())
        self._mark = ""
        return self._open(start)

    def _text(self) -> Iterator[Parsed] | None:
        """Text up to the next mark, or to what may be the beginning of one."""
        marks = [(at, mark) for mark in _OPENERS if (at := self._held.find(mark)) >= 0]
        if marks:
            at, self._mark = min(marks)
            self._step = self._marked
            return iter((self._take(at),))
        certain = len(self._held) - _mark_prefix(_OPENERS, self._held)
        return iter((self._take(certain),)) if certain else None

    def _marked(self) -> Iterator[Parsed] | None:
        """After a mark there must be an object, or a list."""
        after = self._held[len(self._mark) :]
        start = len(self._held) - len(after.lstrip())
        if start == len(self._held):
            return None
        if self._held[start] == _OPENERS[self._mark]:
            return self._open(start)
        self._step = self._text
        return iter((self._take(len(self._mark)),))

    def _open(self, start: int) -> Iterator[Parsed]:
        self._value = _JsonScanner(start)
        self._step = self._inside
        return iter(())

    def _inside(self) -> Iterator[Parsed] | None:
        """Inside the object or list, until it closes."""
        if not self._value.closes(self._held):
            return None
        start, whole = self._value.start, self._take(self._value.at)
        calls = _calls(whole[start:], self._names)
        if not calls:
            self._step = self._text
            return iter((whole,))
        self._step = {HERMES: self._closing, MISTRAL: self._text}.get(self._mark, self._beginning)
        return iter(calls)

    def _closing(self) -> Iterator[Parsed] | None:
        """After a Hermes call: its end mark, which may be missing."""
        after = self._held.lstrip()
        if HERMES_END.startswith(after) and after != HERMES_END:
            return None
        self._step = self._text
        if after.startswith(HERMES_END):
            self._take(len(self._held) - len(after) + len(HERMES_END))
        return iter(())

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _trimmed(self, parsed: Iterator[Parsed]) -> Iterator[Parsed]:
        """`parsed` without the white space around calls; white space that may precede a call is held back."""
        for part in parsed:
            if isinstance(part, ParsedCall):
                self._space, self._after_call = "", True
                self.calls += 1
                if self._parallel or self.calls == 1:
                    yield part
                continue
            text = self._space + (part.lstrip() if self._after_call else part)
            shown = text.rstrip()
            self._space = text[len(shown) :]
            if shown:
                self._after_call = False
                yield shown


class _JsonScanner:
    """Finds the end of the JSON object or list that begins at `start` in growing text; scanning goes on from `at`."""

    def __init__(self, start: int = 0) -> None:
        self.start = self.at = start
        self._depth = 0
        self._quoted = self._escaped = False

    def closes(self, text: str) -> bool:
        """Continue scanning `text`, which may have grown; return whether the value is complete and ends at `at`."""
        while self.at < len(text):
            character = text[self.at]
            self.at += 1
            if self._quoted:
                self._quote(character)
            elif character == '"':
                self._quoted = True
            else:
                self._depth += (character in "{[") - (character in "}]")
                if not self._depth:
                    return True
        return False

    def _quote(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        else:
            self._escaped = character == "\\"
            self._quoted = character != '"'


def _calls(text: str, names: Collection[str]) -> list[ParsedCall]:
    """The calls in a finished object or list; none if any of them is malformed."""
    try:
        if text.startswith("["):
            return [_call(written, names) for written in msgspec.json.decode(text, type=list[_WrittenCall])]
        return [_call(msgspec.json.decode(text, type=_WrittenCall), names)]
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return []


def _call(written: _WrittenCall, names: Collection[str]) -> ParsedCall:
    raw = bytes(written.arguments or written.parameters)
    msgspec.json.decode(raw, type=dict)
    if written.name not in names:
        raise msgspec.ValidationError("no such function")
    return ParsedCall(written.name, raw.decode())


def _mark_prefix(marks: Collection[str], text: str) -> int:
    """How many characters at the end of `text` may be the beginning of a mark."""
    sizes = range(min(len(text), max(map(len, marks)) - 1), 0, -1)
    return next((size for size in sizes if any(mark.startswith(text[-size:]) for mark in marks)), 0)
