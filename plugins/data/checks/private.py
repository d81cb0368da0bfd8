"""Owns the rules `pii` and `secret`: what a model must not learn by heart. Findings never repeat what they found in full.

Card numbers count when their Luhn digit is right (ISO/IEC 7812), bank accounts when their check digits are (ISO 13616).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from tunery.plugins.data.checks.finding import Check, Fault
from tunery.plugins.data.checks.line import Line
from tunery.plugins.hookspecs import Severity

__all__ = ["Personal", "Secret", "is_card", "is_iban"]

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(0?\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])"
)
_CARD = re.compile(r"(?<![\w.-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
"""As the United States give them out: no area 000, 666 or from 900, no group 00, no serial 0000."""
_SECRETS = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})"),
    "GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"),
    "Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{34,}"),
    "Stripe key": re.compile(r"\b[rs]k_live_[0-9A-Za-z]{16,}"),
    "API key": re.compile(r"\bsk-(?:[a-z]{2,8}-)?[A-Za-z0-9_-]{20,}"),
    "signed token (JWT)": re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}"),
    "password in an address": re.compile(r"\b[a-z][a-z0-9+]{1,20}://[^\s:/@]{1,64}:[^\s:/@]{3,64}@[\w.-]{3,}"),
}
_NAMED = r"(?:password|passwd|pwd|passphrase|passcode|passwort|kennwort|contrase\u00f1a|mot de passe)"
_PASSWORD = re.compile(
    rf"\b\w{{0,20}}{_NAMED}[\"']?\s{{0,3}}(?P<sign>[:=]|is|lautet|ist|est|es)\s{{0,3}}[\"'`]?(?P<value>[^\s\"'`<>()\[\]{{}}$%,;]{{6,64}})",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"\b(?:api|access|secret|auth|private)[_ -]?(?:key|token|secret)[\"']?\s{0,3}[:=]\s{0,3}[\"'`]?(?P<value>[A-Za-z0-9_\-+/]{20,})",
    re.IGNORECASE,
)
_PASSWORD_HINTS, _KEY_HINTS = ("pass", "pwd", "kennwort", "contrase"), ("key", "secret", "token")
_CARDS = re.compile(r"4(?:\d{12}|\d{15}|\d{18})|3[47]\d{13}|3[0689]\d{12}|35\d{14}|(?:5[1-5]|2[2-7])\d{14}|6\d{15,18}")
"""Prefixes and lengths that issuers use."""
_HINTS = ("PRIVATE KEY", "AKIA", "ASIA", "gh", "glpat-", "xox", "AIza", "hf_", "k_live_", "sk-", "eyJ", "://")
_DIGIT = re.compile(r"\d{3}|\+\d")


class Personal(Check):
    """What points to a person."""

    def of_line(self, line: Line) -> Iterable[Fault]:
        for path, text in line.texts:
            for what, found in _personal(text):
                severity: Severity | None = "error" if what in _NUMBERS else None
                yield Fault(path, f"holds a {what}: {_hidden(found)}", "replace it by an invented one", severity)


class Secret(Check):
    """What opens a door."""

    def of_line(self, line: Line) -> Iterable[Fault]:
        for path, text in line.texts:
            for what, hidden, severity in _assigned(text):
                yield Fault(path, f"holds a {what}: {hidden}", "change it, and take it out of the data", severity)
            if any(hint in text for hint in _HINTS):
                for what, pattern in _SECRETS.items():
                    for match in pattern.finditer(text):
                        yield Fault(
                            path, f"holds a {what}: {_hidden(match[0])}", "revoke it, and take it out of the data"
                        )


def _assigned(text: str) -> Iterator[tuple[str, str, Severity | None]]:
    """Passwords and keys that are named as such: what, hidden, and a warning where the text may only speak of one."""
    lower = text.lower()
    if any(hint in lower for hint in _PASSWORD_HINTS):
        for match in _PASSWORD.finditer(text):
            value = match["value"].rstrip(".!?:")
            if len(value) >= 6 and _looks_random(value):
                yield "password", _hidden(value), None if match["sign"] in ":=" else "warning"
    if any(hint in lower for hint in _KEY_HINTS):
        for match in _KEY.finditer(text):
            if _looks_random(match["value"]):
                yield "key", _hidden(match["value"]), None


def _looks_random(value: str) -> bool:
    """Whether letters and digits are mixed as in no word, range, address or row of stars."""
    return (
        any(map(str.isdigit, value))
        and any(map(str.isalpha, value))
        and not re.fullmatch(r"\d+[-\u2013]\w+|https?:.*|[x*.\u2022]+", value, re.IGNORECASE)
    )


def is_card(digits: str) -> bool:
    """Whether digits have the prefix and length of a card and end in the check digit of Luhn."""
    if not (digits.isascii() and _CARDS.fullmatch(digits)):
        return False
    doubled = [int(digit) * (1 + index % 2) for index, digit in enumerate(reversed(digits))]
    return sum(number - 9 * (number > 9) for number in doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether letters and digits without spaces are an account number whose remainder by 97 is 1."""
    if not (15 <= len(text) <= 34 and text.isascii() and text.isalnum()):
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


_NUMBERS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "card number": (_CARD, is_card),
    "bank account (IBAN)": (_IBAN, is_iban),
    "social security number": (_SSN, bool),
}
"""What is an error to train on: patterns, and what must hold of a match without its spaces."""


def _personal(text: str) -> Iterator[tuple[str, str]]:
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


def _hidden(text: str) -> str:
    return f"{text[:4]}… ({len(text)} characters)"
