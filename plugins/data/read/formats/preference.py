"""Preference rows, one prompt with a chosen and a rejected answer, as OpenAI (in both spellings) and as TRL write them.

The chosen answer ends `messages`; `rejected` holds the messages of the other, without the prompt. Answers that begin
with the whole prompt, as whole conversations do, are read without it; answers that repeat only a part of it are
refused.
"""

from __future__ import annotations

from os.path import commonprefix
from typing import Any

from tunery.plugins.data.read.formats.faults import (
    Fault,
    InvalidRow,
    item_faults,
    json_type,
    misplaced_keys,
    text_faults,
    unknown_keys,
)
from tunery.plugins.data.read.formats.messages import (
    from_json_text,
    message_faults,
    plain_messages,
    plain_tools,
    tool_faults,
)
from tunery.plugins.hookspecs import Conversation, FormatInfo

__all__ = ["OPENAI_PREFERENCE", "PREFERENCE"]

Messages = list[dict[str, Any]]

_SPELLINGS = (("preferred_output", "non_preferred_output"), ("preferred_completion", "non_preferred_completion"))
_FIELDS = tuple(name for pair in _SPELLINGS for name in pair)
_TRL_KEYS = ("prompt", "chosen", "rejected", "tools")


def _sniff_openai(row: dict[str, Any]) -> bool:
    return any(name in row for name in _FIELDS)


def _openai(row: dict[str, Any]) -> Conversation:
    names = _SPELLINGS[1] if set(_SPELLINGS[1]) & set(row) else _SPELLINGS[0]
    faults = misplaced_keys(row, ("input", *names))
    given = row.get("input")
    body = given if isinstance(given, dict) else {}
    if not isinstance(given, dict):
        faults.append(Fault("$.input", f"must be an object with messages, not {json_type(given)}"))
    faults += unknown_keys("$.input", body, ("messages", "tools", "parallel_tool_calls"))
    if body.get("tools") is not None:
        faults += tool_faults("$.input.tools", body["tools"])
    faults += _messages_faults("$.input.messages", body.get("messages"), answer=False)
    for name in names:
        faults += _messages_faults(f"$.{name}", row.get(name), answer=True)
    if faults:
        raise InvalidRow(faults)
    return _conversation(body["messages"], row[names[0]], row[names[1]], body.get("tools"), names[0], names[1])


def _sniff_trl(row: dict[str, Any]) -> bool:
    return "chosen" in row or "rejected" in row


def _trl(row: dict[str, Any]) -> Conversation:
    faults = misplaced_keys(row, _TRL_KEYS)
    tools = from_json_text(row.get("tools"))
    faults += [] if tools is None else tool_faults("$.tools", tools)
    is_text = isinstance(row.get("chosen"), str) or isinstance(row.get("rejected"), str)
    faults += _text_answers_faults(row) if is_text else _message_answers_faults(row)
    if faults:
        raise InvalidRow(faults)
    prompt, chosen, rejected = _from_texts(row) if is_text else _from_messages(row)
    return _conversation(prompt, chosen, rejected, tools, "chosen", "rejected")


def _text_answers_faults(row: dict[str, Any]) -> list[Fault]:
    return text_faults(row, *(("prompt",) if "prompt" in row else ()), "chosen", "rejected")


def _message_answers_faults(row: dict[str, Any]) -> list[Fault]:
    faults: list[Fault] = []
    if isinstance(row.get("prompt"), str):
        # As in UltraFeedback and its descendants: the question as a text beside two conversations.
        faults += text_faults(row, "prompt")
    elif "prompt" in row:
        faults += _messages_faults("$.prompt", row["prompt"], answer=False)
    for name in ("chosen", "rejected"):
        faults += _messages_faults(f"$.{name}", row.get(name), answer=True)
    return faults


def _from_texts(row: dict[str, Any]) -> tuple[Messages, Messages, Messages]:
    """Prompt and two answers given as texts.

    Without `prompt` it is the common prefix of the answers, up to the end of a word.
    """
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None:
        shared = commonprefix([chosen, rejected])
        prompt = shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1]
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        if not prompt.strip() or not chosen.strip() or not rejected.strip():
            raise InvalidRow(
                [Fault("$.prompt", "is missing, and chosen and rejected share no beginning", "add the prompt")]
            )
    return [{"role": "user", "content": prompt}], [_answer(chosen)], [_answer(rejected)]


def _from_messages(row: dict[str, Any]) -> tuple[Messages, Messages, Messages]:
    """Prompt and two answers given as messages. Without `prompt` it is the messages that both begin with."""
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        return prompt, chosen, rejected
    if isinstance(prompt, str) and chosen[0]["role"] == rejected[0]["role"] == "assistant":
        return [{"role": "user", "content": prompt}], chosen, rejected
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise InvalidRow(
            [Fault("$.prompt", "is missing, and chosen and rejected share no beginning", "add the prompt")]
        )
    if isinstance(prompt, str) and not any(_text(message) == prompt.strip() for message in chosen[:shared]):
        raise InvalidRow(
            [Fault("$.prompt", "is not what chosen and rejected begin with", "keep one of the two questions")]
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _messages_faults(path: str, messages: Any, *, answer: bool) -> list[Fault]:
    if not isinstance(messages, list) or not messages:
        return [Fault(path, f"must be a list of at least one message, not {json_type(messages)}")]
    faults = item_faults(path, messages, message_faults)
    if answer and not faults and messages[-1]["role"] != "assistant":
        faults.append(Fault(path, "must end with an assistant message: the answer"))
    return faults


def _conversation(
    prompt: Messages, chosen: Messages, rejected: Messages, tools: Any, better: str, worse: str
) -> Conversation:
    prompt = plain_messages(prompt)
    chosen = _without_prompt(f"$.{better}", plain_messages(chosen), prompt)
    rejected = _without_prompt(f"$.{worse}", plain_messages(rejected), prompt)
    if chosen == rejected:
        raise InvalidRow(
            [Fault(f"$.{worse}", f"is the same as {better}, so there is nothing to prefer", "drop the row")]
        )
    return Conversation(messages=[*prompt, *chosen], tools=plain_tools(tools), rejected=rejected, prompt=len(prompt))


def _without_prompt(path: str, answer: Messages, prompt: Messages) -> Messages:
    """The messages of an answer, given alone or after the whole prompt.

    Raises InvalidRow where it repeats only a part of it.
    """
    if len(answer) > len(prompt) and all(map(_same, answer, prompt)):
        answer = answer[len(prompt) :]
    for index, message in enumerate(answer):
        if message["role"] == "assistant":
            break
        if any(_same(message, earlier) for earlier in prompt):
            fix = "leave out of it what the prompt has, or repeat the prompt whole"
            raise InvalidRow([Fault(f"{path}[{index}]", "repeats a message of the prompt", fix)])
    return answer


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two messages are equal, apart from null fields and weights."""
    kept = [{name: item for name, item in m.items() if item is not None and name != "weight"} for m in (one, other)]
    return kept[0] == kept[1]


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""


def _answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


OPENAI_PREFERENCE = FormatInfo(
    name="openai-preference",
    summary='{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}',
    sniff=_sniff_openai,
    to_conversation=_openai,
    keys=("input", *_FIELDS),
)
PREFERENCE = FormatInfo(
    name="preference",
    summary='{"prompt": ..., "chosen": ..., "rejected": ...}, all three texts or all three lists of messages',
    sniff=_sniff_trl,
    to_conversation=_trl,
    keys=_TRL_KEYS,
)
