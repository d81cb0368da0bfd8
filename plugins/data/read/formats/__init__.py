"""The built-in formats of training rows. Each refuses a row whose meaning it would have to guess."""

from __future__ import annotations

from tunery.plugins.data.read.formats.chat import CHAT
from tunery.plugins.data.read.formats.faults import Fault, InvalidRow
from tunery.plugins.data.read.formats.pairs import ALPACA, PROMPT_COMPLETION
from tunery.plugins.data.read.formats.preference import OPENAI_PREFERENCE, PREFERENCE
from tunery.plugins.data.read.formats.sharegpt import SHAREGPT

__all__ = [
    "ALPACA",
    "BUILT_IN",
    "CHAT",
    "OPENAI_PREFERENCE",
    "PREFERENCE",
    "PROMPT_COMPLETION",
    "SHAREGPT",
    "Fault",
    "InvalidRow",
]

BUILT_IN = (CHAT, PROMPT_COMPLETION, ALPACA, SHAREGPT, OPENAI_PREFERENCE, PREFERENCE)
