"""The formats of one question and one answer: prompt/completion and Alpaca."""

from __future__ import annotations

from typing import Any

from tunery.plugins.data.read.formats.faults import (
    Fault,
    InvalidRow,
    item_faults,
    json_type,
    misplaced_keys,
    text_faults,
)
from tunery.plugins.hookspecs import FormatInfo

__all__ = ["ALPACA", "PROMPT_COMPLETION"]

_PAIR_KEYS = ("prompt", "completion")
_OTHERS = {"chosen", "rejected", "messages", "conversations", "instruction"}
_ALPACA_KEYS = ("instruction", "input", "output", "system", "history", "text")


def _sniff_pair(row: dict[str, Any]) -> bool:
    # Rows of other formats often have their question once more, as prompt.
    return {"prompt", "completion"} <= row.keys() or bool(row.keys() & set(_PAIR_KEYS) and not row.keys() & _OTHERS)


def _prompt_completion(row: dict[str, Any]) -> list[dict[str, Any]]:
    faults = [*misplaced_keys(row, _PAIR_KEYS), *text_faults(row, "prompt", "completion")]
    if faults:
        raise InvalidRow(faults)
    return _exchange(row["prompt"], row["completion"])


def _sniff_alpaca(row: dict[str, Any]) -> bool:
    return "instruction" in row


def _alpaca(row: dict[str, Any]) -> list[dict[str, Any]]:
    faults = [*misplaced_keys(row, _ALPACA_KEYS), *text_faults(row, "instruction", "output")]
    faults += [
        Fault(f"$.{name}", f"must be a text, not {json_type(row[name])}")
        for name in ("input", "system")
        if not isinstance(row.get(name) or "", str)
    ]
    history = row.get("history") or []
    faults += _history_faults(history)
    if faults:
        raise InvalidRow(faults)
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    question = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
    return [
        *system,
        *(message for pair in history for message in _exchange(*pair)),
        *_exchange(question, row["output"]),
    ]


def _history_faults(history: Any) -> list[Fault]:
    if not isinstance(history, list):
        return [Fault("$.history", f"must be a list of [question, answer], not {json_type(history)}")]
    return item_faults("$.history", history, _exchange_faults)


def _exchange_faults(path: str, pair: Any) -> list[Fault]:
    if isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) and text for text in pair):
        return []
    return [Fault(path, "must be [question, answer], two texts")]


def _exchange(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


PROMPT_COMPLETION = FormatInfo(
    name="prompt-completion",
    summary='{"prompt": "...", "completion": "..."}, rendered as one user and one assistant turn',
    sniff=_sniff_pair,
    to_conversation=_prompt_completion,
    keys=_PAIR_KEYS,
)
ALPACA = FormatInfo(
    name="alpaca",
    summary='{"instruction": "...", "input": "...", "output": "..."}, with "system" and "history" where there are some',
    sniff=_sniff_alpaca,
    to_conversation=_alpaca,
    keys=_ALPACA_KEYS,
)
