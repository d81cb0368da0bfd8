"""Owns the rule `special_token`: control tokens spelled out in texts.

The renderer encodes them as plain text, so they cannot break a conversation apart; but they are hardly ever meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tunery.plugins.data.checks.finding import Check, Fault
from tunery.plugins.data.checks.line import Line

__all__ = ["SpecialTokens"]

_COMMON = re.compile(
    r"<\|[A-Za-z0-9_]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<<SYS>>|<\uff5c[^\uff5c]{1,40}\uff5c>"
)
"""What is a control token of some common model, for files that are checked without a base."""


class SpecialTokens(Check):
    """Those of the base; without a base those of common models."""

    def of_line(self, line: Line) -> Iterable[Fault]:
        for path, text in line.texts:
            for token in self._found(line, text):
                yield Fault(
                    path,
                    f"spells the control token {token}",
                    "drop it; it would be trained as plain text, not as a token",
                )

    def _found(self, line: Line, text: str) -> list[str]:
        if line.renderer is not None:
            return line.renderer.special_tokens_in([{"role": "user", "content": text}])
        return sorted(set(_COMMON.findall(text))) if "<" in text or "[" in text else []
