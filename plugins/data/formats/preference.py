"""Owns rows of one prompt with a better and a worse answer: as OpenAI writes them (both spellings) and as TRL does.

The better answer ends `messages`; `rejected` holds the messages of the worse one, without the prompt.
"""

from __future__ import annotations

from os.path import commonprefix
from typing import Any

from tunery.plugins.data.formats.faults import (
    Faults,
    RowInvalid,
    kind,
    message_faults,
    plain_messages,
    text_faults,
    tool_faults,
    unknown,
)
from tunery.plugins.hookspecs import Conversation, FormatInfo

__all__ = ["OPENAI_PREFERENCE", "PREFERENCE"]

Messages = list[dict[str, Any]]

_SPELLINGS = (("preferred_output", "non_preferred_output"), ("preferred_completion", "non_preferred_completion"))
_FIELDS = tuple(name for pair in _SPELLINGS for name in pair)


def _sniff_openai(row: dict[str, Any]) -> bool:
    return any(name in row for name in _FIELDS)


def _openai(row: dict[str, Any]) -> Conversation:
    names = _SPELLINGS[1] if set(_SPELLINGS[1]) & set(row) else _SPELLINGS[0]
    faults = unknown("$", row, ("input", *names))
    given = row.get("input")
    asked = given if isinstance(given, dict) else {}
    if not isinstance(given, dict):
        faults.append(("$.input", f"must be an object with messages, not {kind(given)}"))
    faults += unknown("$.input", asked, ("messages", "tools", "parallel_tool_calls"))
    if asked.get("tools") is not None:
        faults += tool_faults("$.input.tools", asked["tools"])
    faults += _messages_faults("$.input.messages", asked.get("messages"), answer=False)
    for name in names:
        faults += _messages_faults(f"$.{name}", row.get(name), answer=True)
    if faults:
        raise RowInvalid(faults)
    return _conversation(asked["messages"], row[names[0]], row[names[1]], asked.get("tools"), names[0], names[1])


def _sniff_trl(row: dict[str, Any]) -> bool:
    return "chosen" in row or "rejected" in row


def _trl(row: dict[str, Any]) -> Conversation:
    faults = unknown("$", row, ("prompt", "chosen", "rejected", "tools"))
    tools = row.get("tools")
    faults += [] if tools is None else tool_faults("$.tools", tools)
    is_text = isinstance(row.get("chosen"), str) or isinstance(row.get("rejected"), str)
    faults += _texts_faults(row) if is_text else _talk_faults(row)
    if faults:
        raise RowInvalid(faults)
    prompt, chosen, rejected = _from_texts(row) if is_text else _from_talk(row)
    return _conversation(prompt, chosen, rejected, tools, "chosen", "rejected")


def _texts_faults(row: dict[str, Any]) -> Faults:
    return text_faults(row, *(("prompt",) if "prompt" in row else ()), "chosen", "rejected")


def _talk_faults(row: dict[str, Any]) -> Faults:
    faults: Faults = []
    if "prompt" in row:
        faults += _messages_faults("$.prompt", row["prompt"], answer=False)
    for name in ("chosen", "rejected"):
        faults += _messages_faults(f"$.{name}", row.get(name), answer=True)
    return faults


def _from_texts(row: dict[str, Any]) -> tuple[Messages, Messages, Messages]:
    """A prompt and two answers; without `prompt` it is what both answers begin with, up to the end of a word."""
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None:
        shared = commonprefix([chosen, rejected])
        prompt = shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1]
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        if not prompt.strip() or not chosen.strip() or not rejected.strip():
            raise RowInvalid([("$.prompt", "is missing, and chosen and rejected share no beginning; add the prompt")])
    return [{"role": "user", "content": prompt}], [_answer(chosen)], [_answer(rejected)]


def _from_talk(row: dict[str, Any]) -> tuple[Messages, Messages, Messages]:
    """A prompt and two answers; without `prompt` it is the messages that both begin with."""
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row:
        return row["prompt"], chosen, rejected
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise RowInvalid([("$.prompt", "is missing, and chosen and rejected share no beginning; add the prompt")])
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _messages_faults(path: str, messages: Any, *, answer: bool) -> Faults:
    if not isinstance(messages, list) or not messages:
        return [(path, f"must be a list of at least one message, not {kind(messages)}")]
    faults = [fault for i, message in enumerate(messages) for fault in message_faults(f"{path}[{i}]", message)]
    if answer and not faults and messages[-1]["role"] != "assistant":
        faults.append((path, "must end with an assistant message: the answer"))
    return faults


def _conversation(
    prompt: Messages, chosen: Messages, rejected: Messages, tools: Any, better: str, worse: str
) -> Conversation:
    if chosen == rejected:
        raise RowInvalid([(f"$.{worse}", f"is the same as {better}, so there is nothing to prefer; drop the row")])
    return Conversation(
        messages=plain_messages([*prompt, *chosen]),
        tools=tools or None,
        rejected=plain_messages(rejected),
        prompt=len(prompt),
    )


def _answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


OPENAI_PREFERENCE = FormatInfo(
    name="openai-preference",
    summary='{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}',
    sniff=_sniff_openai,
    to_conversation=_openai,
)
PREFERENCE = FormatInfo(
    name="preference",
    summary='{"prompt": ..., "chosen": ..., "rejected": ...}, all three texts or all three lists of messages',
    sniff=_sniff_trl,
    to_conversation=_trl,
)
