"""The rule `secret`: keys, tokens and passwords, which a model must not memorise.

Findings never show what they found in full.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tunery.plugins.data.checks.check import Check, Fault
from tunery.plugins.data.checks.parsed_record import ParsedRecord
from tunery.plugins.data.checks.rules.redaction import redacted
from tunery.plugins.hookspecs import Severity

__all__ = ["Secrets"]

_FORMATS = {
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
_FORMAT_HINTS = ("PRIVATE KEY", "AKIA", "ASIA", "gh", "glpat-", "xox", "AIza", "hf_", "k_live_", "sk-", "eyJ", "://")
"""Cheap substrings that a text must hold before the patterns are tried."""


class Secrets(Check):
    """Looks for the formats of known services, and for what a text calls a password or a key."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        for path, text in record.texts:
            for what, shown, severity in _named_secrets(text):
                yield Fault(path, f"holds a {what}: {shown}", "change it, and take it out of the data", severity)
            if any(hint in text for hint in _FORMAT_HINTS):
                for what, pattern in _FORMATS.items():
                    for match in pattern.finditer(text):
                        yield Fault(
                            path, f"holds a {what}: {redacted(match[0])}", "revoke it, and take it out of the data"
                        )


def _named_secrets(text: str) -> Iterator[tuple[str, str, Severity | None]]:
    """Passwords and keys that a text names as such: what, redacted, and a warning where the text may only be about
    one."""
    lower = text.lower()
    if any(hint in lower for hint in _PASSWORD_HINTS):
        for match in _PASSWORD.finditer(text):
            value = match["value"].rstrip(".!?:")
            if len(value) >= 6 and _looks_random(value):
                yield "password", redacted(value), None if match["sign"] in ":=" else "warning"
    if any(hint in lower for hint in _KEY_HINTS):
        for match in _KEY.finditer(text):
            if _looks_random(match["value"]):
                yield "key", redacted(match["value"]), None


def _looks_random(value: str) -> bool:
    """Whether letters and digits mix as in a password, rather than in a word, range, address or row of stars."""
    return (
        any(map(str.isdigit, value))
        and any(map(str.isalpha, value))
        and not re.fullmatch(r"\d+[-\u2013]\w+|https?:.*|[x*.\u2022]+", value, re.IGNORECASE)
    )
