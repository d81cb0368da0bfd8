"""The rule `encoding`: bytes and characters that an editor or an export has damaged."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec

from tunery.plugins.data.checks.check import Check, CheckContext, Fault
from tunery.plugins.data.checks.parsed_record import Location, ParsedRecord
from tunery.plugins.data.checks.rules.schema import CUT, is_cut

__all__ = ["Encoding"]

_BOM = b"\xef\xbb\xbf"


class Encoding(Check):
    """Looks at the bytes of a record first, then at the texts of its row."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._ends: dict[tuple[str, bool], bool | None] = {}

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        if record.invalid is not None and record.invalid.rule == "encoding":
            for fault in record.invalid.faults:
                fix = CUT if is_cut(record) and "not UTF-8" in fault.message else fault.fix
                yield msgspec.structs.replace(fault, fix=fix, severity="error")
        if record.raw.startswith(_BOM):
            yield Fault("$", "begins with a byte order mark", "save the file as UTF-8 without one")
        if b"\0" in record.raw:
            yield Fault("$", "holds a NUL byte", "export the file again", None if record.row else "error")
        for path, text in record.texts:
            yield from _text_faults(path, text)

    def summarize(self, record: ParsedRecord) -> bool | None:
        """Whether the line ends in CR LF; None for a last line without an end."""
        return record.raw.endswith(b"\r\n") if record.raw.endswith(b"\n") else None

    def compare(self, location: Location, summary: bool) -> Iterable[Fault]:
        key = (location.file, location.held_out)
        first = self._ends.setdefault(key, summary)
        if first is not None and first != summary:
            self._ends[key] = None  # reported once per file
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
    elif _is_mojibake(text):
        yield Fault(path, f"looks like UTF-8 read as another encoding: {_excerpt(text)!r}", "repair it, e.g. with ftfy")


def _is_mojibake(text: str) -> bool:
    return bool(_badness().is_bad(text))


@cache
def _badness() -> Any:
    from ftfy import badness

    return badness


def _excerpt(text: str) -> str:
    match = _badness().BADNESS_RE.search(text)
    at = match.start() if match else 0
    return text[max(0, at - 10) : at + 20]
