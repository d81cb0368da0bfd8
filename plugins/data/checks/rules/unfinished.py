"""The rules `placeholder`, `cut_answer` and `repeated_prompt`: texts that nobody would have written on purpose."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tunery.plugins.data.checks.check import Check, Fault
from tunery.plugins.data.checks.parsed_record import ParsedRecord

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
_MIN_WORDS, _PROMPT_WORDS = 8, 4
_TAIL = 400
_ADDRESS = re.compile(r"[/@_.:\\=]")
_LIST_ITEM = re.compile(r"\s*(?:[-*\u2022+#>|]|\d{1,3}[.)])")
_CUT = "write its end, generate it again with more tokens, or drop the row"


class Placeholder(Check):
    """Placeholders of a template that were not filled in."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        for path, text in record.texts:
            if (
                ("{{" in text or "[" in text or "<" in text)
                and "```" not in text
                and (match := _PLACEHOLDER.search(text))
            ):
                yield Fault(
                    path,
                    f"holds {match[0]!r}, which looks like a template that was not filled in",
                    "fill it in, or drop the row",
                )


class CutAnswer(Check):
    """Last answers that end in the middle of a sentence or code block, as when generation ran into a token limit."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        if record.row is None or record.row.messages[-1].get("tool_calls"):
            return
        answer = record.answer.rstrip()
        if answer.count("```") % 2:
            yield Fault("$", "has an answer that ends inside a block of code", _CUT)
        elif _is_cut(answer):
            yield Fault("$", f"has an answer that ends in the middle of a sentence: {answer[-30:]!r}", _CUT)


class RepeatedPrompt(Check):
    """Answers that begin with the whole prompt, so that training would see the prompt twice."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        row = record.row
        if row is None or len(row.messages) < 2 or row.messages[-2]["role"] != "user":
            return
        prompt = row.messages[-2]["content"].strip()
        answers = [row.messages[-1]["content"], *(message["content"] for message in (row.rejected or [])[:1])]
        repeated = [answer.lstrip().startswith(prompt) for answer in answers]
        if len(prompt.split(None, _PROMPT_WORDS)) >= _PROMPT_WORDS and any(repeated):
            one = "" if all(repeated) else "one "
            yield Fault(
                "$",
                f"repeats the whole prompt at the beginning of {one or 'the '}answer",
                "take it out of the answer, which comes after the prompt",
                None if all(repeated) and row.format != "chat" else "warning",
            )


def _is_cut(answer: str) -> bool:
    """Whether a text of several sentences, or one that leads on, stops short.

    Lists, links, code and labels need no end.
    """
    if not _OPEN_END.search(answer) or len(answer.split(None, _MIN_WORDS)) <= _MIN_WORDS:
        return False
    tail = answer[-_TAIL:]
    last = tail.rpartition("\n")[2]
    if _LIST_ITEM.match(last) or _ADDRESS.search(last.rpartition(" ")[2]):
        return False
    if _DANGLING.search(tail):
        return True
    # The line has a complete sentence, followed by several words without an end.
    ended = list(_ENDED.finditer(last))
    return bool(ended) and len(last[ended[-1].end() :].split()) > 2
