"""The rules `placeholder`, `cut_answer` and `repeated_prompt`: texts that are not what somebody would have written."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tunery.plugins.data.checks.finding import Check, Fault
from tunery.plugins.data.checks.line import Line

__all__ = ["CutAnswer", "Placeholder", "RepeatedPrompt"]

_WORDS = (
    "NAME", "COMPANY", "E-?MAIL", "ADDRESS", "PHONE", "DATE", "TIME", "CITY", "COUNTRY", "STATE", "URL", "LINK", "NUMBER",
    "AMOUNT", "PRICE", "PRODUCT", "ORDER", "USER", "CUSTOMER", "AGENT", "ORGANI[SZ]ATION", "TITLE", "TODO", "PLACEHOLDER",
)  # fmt: skip
_PLACEHOLDER = re.compile(
    r"\{\{-?\s{0,3}[A-Za-z_][\w.| ()'-]{0,40}-?\}\}"  # {{name}}
    rf"|\[(?:[A-Z]{{1,20}}[ _-]){{0,3}}(?:{'|'.join(_WORDS)})(?:[ _-][A-Z]{{1,20}}){{0,2}}\]"  # [NAME], [COMPANY NAME]
    r"|[<\[](?:[Yy]our|YOUR|[Ii]nsert|INSERT)[ _-][A-Za-z][\w' -]{0,40}[>\]]"  # <your company>, [insert date]
)
_OPEN_END = re.compile(r"[^\W\d_]$|,$")
_ENDED = re.compile(r"[.!?:;\u2026][\"'\u201d\u2019)\]*_]{0,3}\s")
_DANGLING = re.compile(
    r"(?:,|\b(?:a|an|the|and|or|but|of|to|in|on|at|for|with|from|by|as|that|which|because|if|when|your|is|are|was|were|will|can))$"
)
_MIN_WORDS, _ASKED_WORDS = 8, 4
_TAIL = 400
_ADDRESS = re.compile(r"[/@_.:\\=]")
_LIST_ITEM = re.compile(r"\s*(?:[-*\u2022+#>|]|\d{1,3}[.)])")


class Placeholder(Check):
    """Places of a template that nobody filled in."""

    def of_line(self, line: Line) -> Iterable[Fault]:
        for path, text in line.texts:
            if (
                ("{{" in text or "[" in text or "<" in text)
                and "```" not in text
                and (found := _PLACEHOLDER.search(text))
            ):
                yield Fault(
                    path,
                    f"holds {found[0]!r}, which looks like a template that was not filled in",
                    "fill it in, or drop the row",
                )


class CutAnswer(Check):
    """Last answers that end in the middle of a sentence or of a block of code, as those do that met a limit of tokens."""

    def of_line(self, line: Line) -> Iterable[Fault]:
        if line.row is None or line.row.messages[-1].get("tool_calls"):
            return
        answer = line.answer.rstrip()
        if answer.count("```") % 2:
            yield Fault("$", "has an answer that ends inside a block of code", _CUT)
        elif _is_cut(answer):
            yield Fault("$", f"has an answer that ends in the middle of a sentence: {answer[-30:]!r}", _CUT)


class RepeatedPrompt(Check):
    """Answers that begin with the whole prompt, which would be trained with the prompt twice."""

    def of_line(self, line: Line) -> Iterable[Fault]:
        row = line.row
        if row is None or len(row.messages) < 2 or row.messages[-2]["role"] != "user":
            return
        asked = row.messages[-2]["content"].strip()
        answers = [row.messages[-1]["content"], *(message["content"] for message in (row.rejected or [])[:1])]
        repeated = [answer.lstrip().startswith(asked) for answer in answers]
        if len(asked.split(None, _ASKED_WORDS)) >= _ASKED_WORDS and any(repeated):
            one = "" if all(repeated) else "one "
            yield Fault(
                "$",
                f"repeats the whole prompt at the beginning of {one or 'the '}answer",
                "take it out of the answer, which comes after the prompt",
                None if all(repeated) and row.format != "chat" else "warning",
            )


def _is_cut(answer: str) -> bool:
    """Whether a text of several sentences, or of one that leads on, has no end. Lists, links, code and labels need none."""
    if not _OPEN_END.search(answer) or len(answer.split(None, _MIN_WORDS)) <= _MIN_WORDS:
        return False
    tail = answer[-_TAIL:]
    last = tail.rpartition("\n")[2]
    if _LIST_ITEM.match(last) or _ADDRESS.search(last.rpartition(" ")[2]):
        return False
    if _DANGLING.search(tail):
        return True
    # Something of this line is a sentence with an end, and its rest is several words without one.
    ended = list(_ENDED.finditer(last))
    return bool(ended) and len(last[ended[-1].end() :].split()) > 2


_CUT = "write its end, generate it again with more tokens, or drop the row"
