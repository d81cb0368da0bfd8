"""The rule `pii`: what points to a person, and that a model must not memorise. Findings never show what they found in
full.

Card numbers count when their Luhn check digit is right (ISO/IEC 7812), bank accounts when their check digits are (ISO
13616).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from tunery.plugins.data.checks.check import Check, Fault
from tunery.plugins.data.checks.parsed_record import ParsedRecord
from tunery.plugins.data.checks.rules.redaction import redacted
from tunery.plugins.hookspecs import Severity

__all__ = ["PersonalData", "is_card", "is_iban"]

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(0?\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])"
)
_CARD = re.compile(r"(?<![\w.-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
"""As issued in the United States: no area 000, 666 or from 900, no group 00, no serial 0000."""
_CARDS = re.compile(r"4(?:\d{12}|\d{15}|\d{18})|3[47]\d{13}|3[0689]\d{12}|35\d{14}|(?:5[1-5]|2[2-7])\d{14}|6\d{15,18}")
"""Prefixes and lengths that issuers use."""
_DIGIT = re.compile(r"\d{3}|\+\d")


class PersonalData(Check):
    """E-mail addresses and phone numbers; card, account and social security numbers, which are errors."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        for path, text in record.texts:
            for what, match in _personal_data(text):
                severity: Severity | None = "error" if what in _NUMBERS else None
                yield Fault(path, f"holds a {what}: {redacted(match)}", "replace it with an invented one", severity)


def is_card(digits: str) -> bool:
    """Whether digits have a card's prefix and length, and the right Luhn check digit."""
    if not (digits.isascii() and _CARDS.fullmatch(digits)):
        return False
    doubled = [int(digit) * (1 + index % 2) for index, digit in enumerate(reversed(digits))]
    return sum(number - 9 * (number > 9) for number in doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether letters and digits, without spaces, are an account number: 1 modulo 97."""
    if not (15 <= len(text) <= 34 and text.isascii() and text.isalnum()):
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


_NUMBERS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "card number": (_CARD, is_card),
    "bank account (IBAN)": (_IBAN, is_iban),
    "social security number": (_SSN, bool),
}
"""Numbers that are an error to train on: a pattern, and a test of the match without its spaces."""


def _personal_data(text: str) -> Iterator[tuple[str, str]]:
    if "@" in text:
        yield from (("mail address", match[0]) for match in _EMAIL.finditer(text))
    if not _DIGIT.search(text):
        return
    taken: list[tuple[int, int]] = []
    for what, (pattern, holds) in _NUMBERS.items():
        for match in pattern.finditer(text):
            if holds(re.sub(r"[ -]", "", match[0])):
                taken.append(match.span())
                yield what, match[0]
    for match in _PHONE.finditer(text):
        if not any(match.start() < end and start < match.end() for start, end in taken):
            yield "phone number", match[0]
