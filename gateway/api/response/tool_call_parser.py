"""Owns telling calls of functions from text in what a model says, as it says it. Whatever is no proper call stays text.

Three styles are understood, whichever the base was asked for: `<tool_call>{"name": …, "arguments": …}</tool_call>` (Hermes),
`[TOOL_CALLS] [{"name": …, "arguments": …}]` (Mistral), and, at the beginning of the answer, `{"name": …, "parameters": …}` alone,
several with a semicolon between them (Llama 3). A call is one of a function that was offered, with an object of arguments. White
space next to a call belongs to it. How the text is cut into pieces changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator

import msgspec

__all__ = ["MARKS", "Call", "CallParser"]

_HERMES, _HERMES_END, _MISTRAL, _LLAMA = "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"
MARKS = (_HERMES, _HERMES_END, _MISTRAL, _LLAMA)
"""Texts that have to be seen here, even where they are control tokens."""
_OPENERS = {_HERMES: "{", _MISTRAL: "[", _LLAMA: "{"}
_BETWEEN = re.compile(r"[\s;]*")


class Call(msgspec.Struct, frozen=True):
    """A call: the function's name, and its arguments as the JSON text that the model wrote."""

    name: str
    arguments: str


class _Written(msgspec.Struct):
    """A call as a model writes it."""

    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"")
    parameters: msgspec.Raw = msgspec.Raw(b"")


Said = str | Call


class CallParser:
    """One answer. Only functions in `names` can be called, and only the first call counts unless `parallel`.

    With `only_calls` the answer is made of calls, so that what is left at its end is a call that was cut off, and no text.
    """

    def __init__(self, names: Collection[str], *, parallel: bool = True, only_calls: bool = False) -> None:
        self._names, self._parallel, self._only_calls = names, parallel, only_calls
        self._held = ""
        self._step: Callable[[], Iterator[Said] | None] = self._beginning
        self._value = _Value()
        self._mark = ""
        self._space = ""
        self._after_call = False
        self.calls = 0

    def push(self, text: str) -> list[Said]:
        """Take the next piece of the answer and return what became certain with it."""
        self._held += text
        said: list[Said] = []
        while self._held and (found := self._step()) is not None:
            said += self._spaced(found)
        return said

    def end(self) -> list[Said]:
        """What was held back; nothing comes after it."""
        if self._only_calls:
            return []
        said = [*self._spaced(iter((self._take(len(self._held)),)))]
        return said if self._after_call else [*said, *filter(None, (self._space,))]

    # Each step returns what it made certain, after choosing the next step, or None when it needs more text. ---------------------

    def _beginning(self) -> Iterator[Said] | None:
        """At the beginning, or right after a call without marks: another such call, or anything."""
        match = _BETWEEN.match(self._held) if self.calls else None
        start = match.end() if match else len(self._held) - len(self._held.lstrip())
        if start == len(self._held):
            return None
        if self._held[start] != "{":
            self._step = self._text
            return iter(())
        self._mark = ""
        return self._open(start)

    def _text(self) -> Iterator[Said] | None:
        """Text up to the next mark, or to what may be the beginning of one."""
        found = [(at, mark) for mark in _OPENERS if (at := self._held.find(mark)) >= 0]
        if found:
            at, self._mark = min(found)
            self._step = self._marked
            return iter((self._take(at),))
        certain = len(self._held) - _beginning_of(_OPENERS, self._held)
        return iter((self._take(certain),)) if certain else None

    def _marked(self) -> Iterator[Said] | None:
        """Behind a mark must be an object, or a list."""
        behind = self._held[len(self._mark) :]
        start = len(self._held) - len(behind.lstrip())
        if start == len(self._held):
            return None
        if self._held[start] == _OPENERS[self._mark]:
            return self._open(start)
        self._step = self._text
        return iter((self._take(len(self._mark)),))

    def _open(self, start: int) -> Iterator[Said]:
        self._value = _Value(start)
        self._step = self._inside
        return iter(())

    def _inside(self) -> Iterator[Said] | None:
        """In the object or list, until it closes."""
        if not self._value.closes(self._held):
            return None
        start, whole = self._value.start, self._take(self._value.at)
        calls = _calls(whole[start:], self._names)
        if not calls:
            self._step = self._text
            return iter((whole,))
        self._step = {_HERMES: self._closing, _MISTRAL: self._text}.get(self._mark, self._beginning)
        return iter(calls)

    def _closing(self) -> Iterator[Said] | None:
        """Behind a Hermes call: its end mark, which may be missing."""
        behind = self._held.lstrip()
        if _HERMES_END.startswith(behind) and behind != _HERMES_END:
            return None
        self._step = self._text
        if behind.startswith(_HERMES_END):
            self._take(len(self._held) - len(behind) + len(_HERMES_END))
        return iter(())

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _spaced(self, found: Iterator[Said]) -> Iterator[Said]:
        """`found` without the white space around calls; what may be such waits."""
        for one in found:
            if isinstance(one, Call):
                self._space, self._after_call = "", True
                self.calls += 1
                if self._parallel or self.calls == 1:
                    yield one
                continue
            text = self._space + (one.lstrip() if self._after_call else one)
            shown = text.rstrip()
            self._space = text[len(shown) :]
            if shown:
                self._after_call = False
                yield shown


class _Value:
    """Finds where the JSON object or list that begins at `start` ends, however it comes; `at` is how far it has looked."""

    def __init__(self, start: int = 0) -> None:
        self.start = self.at = start
        self._depth = 0
        self._quoted = self._escaped = False

    def closes(self, text: str) -> bool:
        """Look on in `text`, of which more has come; whether the value is whole, and ends at `at`."""
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


def _calls(text: str, names: Collection[str]) -> list[Call]:
    """The calls in a finished object or list; none when anything is wrong with any of them."""
    try:
        if text.startswith("["):
            return [_call(written, names) for written in msgspec.json.decode(text, type=list[_Written])]
        return [_call(msgspec.json.decode(text, type=_Written), names)]
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return []


def _call(written: _Written, names: Collection[str]) -> Call:
    raw = bytes(written.arguments or written.parameters)
    msgspec.json.decode(raw, type=dict)
    if written.name not in names:
        raise msgspec.ValidationError("no such function")
    return Call(written.name, raw.decode())


def _beginning_of(marks: Collection[str], text: str) -> int:
    """How many characters at the end of `text` may be the beginning of a mark."""
    sizes = range(min(len(text), max(map(len, marks)) - 1), 0, -1)
    return next((size for size in sizes if any(mark.startswith(text[-size:]) for mark in marks)), 0)
