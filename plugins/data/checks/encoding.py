"""Owns the rule `encoding`: bytes and characters that an editor or an export has damaged."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from tunery.plugins.data.checks.finding import Check, Context, Fault
from tunery.plugins.data.checks.line import Line, Place
from tunery.plugins.data.checks.schema import CUT, is_cut

__all__ = ["Encoding"]

_BOM = b"\xef\xbb\xbf"


class Encoding(Check):
    """Bytes first, then the texts of a row."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._ends: dict[tuple[str, bool], bool | None] = {}

    def of_line(self, line: Line) -> Iterable[Fault]:
        if line.invalid is not None and line.invalid.rule == "encoding":
            for path, text in line.invalid.faults:
                message, _, fix = text.rpartition("; ")
                yield Fault(path, message, CUT if is_cut(line) and "not UTF-8" in message else fix, "error")
        if line.raw.startswith(_BOM):
            yield Fault("$", "begins with a byte order mark", "save the file as UTF-8 without one")
        if b"\0" in line.raw:
            yield Fault("$", "holds a NUL byte", "export the file again", None if line.row else "error")
        for path, text in line.texts:
            yield from _text_faults(path, text)

    def note(self, line: Line) -> bool | None:
        """Whether the line ends as on Windows."""
        return line.raw.endswith(b"\r\n") if line.raw.endswith(b"\n") else None

    def gather(self, place: Place, note: bool) -> Iterable[Fault]:
        key = (place.file, place.validation)
        first = self._ends.setdefault(key, note)
        if first is not None and first != note:
            self._ends[key] = None  # said once a file
            yield Fault(
                "$", "ends in CR LF and other lines in LF alone, or the reverse", "use one line end in the file"
            )


def _text_faults(path: str, text: str) -> Iterable[Fault]:
    if "\0" in text:
        yield Fault(path, "holds the character NUL", "drop it")
    if text.isascii():
        return
    if "\ufffd" in text:
        yield Fault(path, "holds U+FFFD, which stands for bytes that were lost", "export the text again")
    elif _is_bad(text):
        yield Fault(path, f"looks like UTF-8 read as another encoding: {_excerpt(text)!r}", "repair it, e.g. with ftfy")


def _is_bad(text: str) -> bool:
    return bool(_badness().is_bad(text))


@cache
def _badness() -> Any:
    from ftfy import badness

    return badness


def _excerpt(text: str) -> str:
    found = _badness().BADNESS_RE.search(text)
    at = found.start() if found else 0
    return text[max(0, at - 10) : at + 20]
