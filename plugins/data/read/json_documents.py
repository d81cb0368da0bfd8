"""Read JSON that is not one object per line: an array of objects, or objects one after another over any number of
lines.

The text is read as it is needed, so a file of any size takes the memory of its longest row. A row's number is its
position among the objects, from 1.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tunery.plugins.data.read.record import MAX_ROW, FileBroken, Record

__all__ = ["read_documents"]

_FIRST = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")


def read_documents(path: Path, stream: io.BufferedReader) -> Iterator[Record]:
    """Yield the objects of one array, or of the top level. Raises FileBroken at the first place that is not JSON."""
    text = _Text(path, stream)
    is_array = text.next_character() == "["
    if is_array:
        text.take("[")
    number = 0
    while text.next_character() not in ("", "]"):
        if is_array and number:
            text.take(",")
            text.next_character()
        number += 1
        yield number, text.value(number)
    if is_array:
        text.take("]")
    if text.next_character():
        raise text.broken("goes on after its end", "keep one array, or one object a line")


class _Text:
    """The characters of a stream that have not been consumed, with a window of them in memory."""

    def __init__(self, path: Path, stream: io.BufferedReader) -> None:
        self._path, self._stream = path, stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(parse_int=str, parse_float=str)
        self._window, self._at, self._line, self._ended = "", 0, 1, False

    def next_character(self) -> str:
        """The next character that is not white space, without consuming it; "" at the end."""
        while True:
            end = _SPACE.match(self._window, self._at).end()  # type: ignore[union-attr]
            self._advance(end)
            if end < len(self._window):
                return self._window[end]
            if not self._more(_FIRST):
                return ""

    def take(self, wanted: str) -> None:
        """Consume a character. Raises FileBroken where another one, or none, comes next."""
        actual = self.next_character()
        if actual != wanted:
            if not actual:
                raise self.broken("ends early: it was cut off", "copy it again")
            raise self.broken(f"has {actual!r} where {wanted!r} must stand", "fix the line")
        self._advance(self._at + 1)

    def value(self, number: int) -> bytes:
        """Consume the next JSON value; return it on one line.

        Raises FileBroken where there is none, or it is too long.
        """
        while True:
            try:
                _, end = self._json.raw_decode(self._window, self._at)
                if end < len(self._window) or self._ended:
                    return self._line_of(end)
            except json.JSONDecodeError as error:
                if not _is_open(error, self._window):
                    raise self._not_json(error) from error
            except RecursionError as error:
                raise self.broken(f"row {number} is nested too deeply", "flatten it") from error
            if len(self._window) - self._at > MAX_ROW:
                raise self.broken(f"row {number} is longer than {MAX_ROW >> 20} MiB", "split it")
            if self._ended:
                raise self.broken(f"row {number} is not complete where the file ends: it was cut off", "copy it again")
            # Twice as much each time, so that a long row is not parsed again for every block of it.
            self._more(max(_FIRST, len(self._window) - self._at))

    def broken(self, problem: str, fix: str) -> FileBroken:
        """The error for the current position."""
        return FileBroken(self._path, problem, fix, line=self._line)

    def _line_of(self, end: int) -> bytes:
        text = self._window[self._at : end]
        self._advance(end)
        # Line ends only stand between the parts of a value; inside a string they are escaped.
        return text.replace("\r", " ").replace("\n", " ").encode("utf-8", "surrogatepass") + b"\n"

    def _not_json(self, problem: json.JSONDecodeError) -> FileBroken:
        line = self._line + self._window.count("\n", self._at, problem.pos)
        column = problem.pos - self._window.rfind("\n", 0, problem.pos)
        return FileBroken(
            self._path,
            f"is not JSON at column {column} ({problem.msg})",
            "fix it; what comes after it cannot be read",
            line=line,
        )

    def _advance(self, to: int) -> None:
        self._line += self._window.count("\n", self._at, to)
        self._at = to

    def _more(self, size: int) -> bool:
        """Read about `size` bytes more; False at the end of the stream."""
        if self._ended:
            return False
        block = self._stream.read(size)
        self._ended = not block
        try:
            text = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise self.broken(f"is not UTF-8 ({error.reason})", "save the file as UTF-8") from error
        self._window, self._at = self._window[self._at :] + text, 0
        return bool(block)


def _is_open(problem: json.JSONDecodeError, window: str) -> bool:
    """Whether more text could still complete a value: the window ends in the middle of one."""
    return problem.msg.startswith("Unterminated") or problem.pos >= len(window.rstrip()) - len("-Infinity")
