"""The rule `special_token`: control tokens spelled out in texts.

The renderer encodes them as plain text, so they cannot break a conversation apart; but they are hardly ever intended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tunery.plugins.data.checks.check import Check, Fault
from tunery.plugins.data.checks.parsed_record import ParsedRecord

__all__ = ["SpecialTokens"]

_COMMON = re.compile(
    r"<\|[A-Za-z0-9_]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<<SYS>>|<\uff5c[^\uff5c]{1,40}\uff5c>"
)
"""Control tokens of common models, for files that are checked without a base."""


class SpecialTokens(Check):
    """Looks for the control tokens of the base; without a base, for those of common models."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        for path, text in record.texts:
            for token in self._spelled(record, text):
                yield Fault(
                    path,
                    f"spells the control token {token}",
                    "drop it; it would be trained as plain text, not as a token",
                )

    def _spelled(self, record: ParsedRecord, text: str) -> list[str]:
        if record.renderer is not None:
            return record.renderer.special_tokens_in([{"role": "user", "content": text}])
        return sorted(set(_COMMON.findall(text))) if "<" in text or "[" in text else []
