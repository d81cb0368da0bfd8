"""Preference rows, one prompt with a chosen and a rejected answer, as OpenAI (in both spellings) and as TRL write them.

The chosen answer ends `messages`; `rejected` holds the messages of the other, without the prompt. Answers that begin
with the whole prompt, as whole conversations do, are read without it; answers that repeat only a part of it are
refused.
"""

from __future__ import annotations

from os.path import commonprefix
from typing import Any

from tunery.plugins.data.read.formats.errors import (
    InvalidRow,
    RowErrors,
    item_errors,
    json_type,
    misplaced_keys,
    text_errors,
    unknown_keys,
)
from tunery.plugins.data.read.formats.messages import (
    from_json_text,
    message_errors,
    plain_messages,
    plain_tools,
    tool_errors,
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
    errors = misplaced_keys(row, ("input", *names))
    given = row.get("input")
    body = given if isinstance(given, dict) else {}
    if not isinstance(given, dict):
        errors.append(("$.input", f"must be an object with messages, not {json_type(given)}"))
    errors += unknown_keys("$.input", body, ("messages", "tools", "parallel_tool_calls"))
    if body.get("tools") is not None:
        errors += tool_errors("$.input.tools", body["tools"])
    errors += _messages_errors("$.input.messages", body.get("messages"), answer=False)
    for name in names:
        errors += _messages_errors(f"$.{name}", row.get(name), answer=True)
    if errors:
        raise InvalidRow(errors)
    return _conversation(body["messages"], row[names[0]], row[names[1]], body.get("tools"), names[0], names[1])


def _sniff_trl(row: dict[str, Any]) -> bool:
    return "chosen" in row or "rejected" in row


def _trl(row: dict[str, Any]) -> Conversation:
    errors = misplaced_keys(row, _TRL_KEYS)
    tools = from_json_text(row.get("tools"))
    errors += [] if tools is None else tool_errors("$.tools", tools)
    is_text = isinstance(row.get("chosen"), str) or isinstance(row.get("rejected"), str)
    errors += _text_answers_errors(row) if is_text else _message_answers_errors(row)
    if errors:
        raise InvalidRow(errors)
    prompt, chosen, rejected = _from_texts(row) if is_text else _from_messages(row)
    return _conversation(prompt, chosen, rejected, tools, "chosen", "rejected")


def _text_answers_errors(row: dict[str, Any]) -> RowErrors:
    return text_errors(row, *(("prompt",) if "prompt" in row else ()), "chosen", "rejected")


def _message_answers_errors(row: dict[str, Any]) -> RowErrors:
    errors: RowErrors = []
    if isinstance(row.get("prompt"), str):
        # As in UltraFeedback and its descendants: the question as a text beside two conversations.
        errors += text_errors(row, "prompt")
    elif "prompt" in row:
        errors += _messages_errors("$.prompt", row["prompt"], answer=False)
    for name in ("chosen", "rejected"):
        errors += _messages_errors(f"$.{name}", row.get(name), answer=True)
    return errors


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
            raise InvalidRow([("$.prompt", "is missing, and chosen and rejected share no beginning; add the prompt")])
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
        raise InvalidRow([("$.prompt", "is missing, and chosen and rejected share no beginning; add the prompt")])
    if isinstance(prompt, str) and not any(_text(message) == prompt.strip() for message in chosen[:shared]):
        raise InvalidRow([("$.prompt", "is not what chosen and rejected begin with; keep one of the two questions")])
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _messages_errors(path: str, messages: Any, *, answer: bool) -> RowErrors:
    if not isinstance(messages, list) or not messages:
        return [(path, f"must be a list of at least one message, not {json_type(messages)}")]
    errors = item_errors(path, messages, message_errors)
    if answer and not errors and messages[-1]["role"] != "assistant":
        errors.append((path, "must end with an assistant message: the answer"))
    return errors


def _conversation(
    prompt: Messages, chosen: Messages, rejected: Messages, tools: Any, better: str, worse: str
) -> Conversation:
    prompt = plain_messages(prompt)
    chosen = _without_prompt(f"$.{better}", plain_messages(chosen), prompt)
    rejected = _without_prompt(f"$.{worse}", plain_messages(rejected), prompt)
    if chosen == rejected:
        raise InvalidRow([(f"$.{worse}", f"is the same as {better}, so there is nothing to prefer; drop the row")])
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
            text = "repeats a message of the prompt; leave out of it what the prompt has, or repeat the prompt whole"
            raise InvalidRow([(f"{path}[{index}]", text)])
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
