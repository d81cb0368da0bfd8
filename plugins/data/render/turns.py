"""Where each assistant turn lies in a rendered conversation.

A turn starts where the serving prompt for it ends, which only the template can say: by rendering the messages before it. For a long
conversation that would take a rendering of everything for every turn. Most templates write one message after the other, so there each
turn is rendered with the few messages before it, and the pieces must add up to the whole, character by character; they are then
compared with a few whole prefixes as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec

from tunery.plugins.data.render.tokenizer import BaseTokenizer
from tunery.registry.errors import InvalidInput

__all__ = ["PROBES", "Turn", "TurnFinder", "shared_length"]

Message = dict[str, Any]

PROBES = ("A probe", "0 probe")
"""Two answers that share no first character show where a turn's own text begins."""

FEW = 8
"""As many turns are always looked for one by one."""
MANY = 32
"""With more turns than this, a template that does not write one message after the other has none that are found."""


class Turn(msgspec.Struct, frozen=True):
    """An assistant turn in the rendered text: characters `start` to `end`; `stops` when `end` is after an end-of-turn token."""

    start: int
    end: int
    stops: bool


class _Unit(msgspec.Struct, frozen=True):
    """An assistant message, or a run of other messages; `index` is the first one's."""

    index: int
    spoken: bool
    messages: list[Message]


class TurnFinder:
    """Finds the turns of `messages` in `text`; `render` renders some of them, with the generation prompt or without."""

    def __init__(
        self,
        messages: Sequence[Message],
        text: str,
        *,
        render: Callable[[Sequence[Message], bool], str],
        tokens: BaseTokenizer,
        stop_ids: Collection[int],
    ) -> None:
        self._messages, self._text = messages, text
        self._render, self._tokens, self._stop_ids = render, tokens, stop_ids

    def find(self) -> Mapping[int, Turn | None]:
        """Each assistant message's turn; None where `text` does not begin with its serving prompt and the whole of it."""
        spoken = [index for index, message in enumerate(self._messages) if message["role"] == "assistant"]
        if len(spoken) > FEW and (found := self._in_steps()) is not None:
            return found
        if len(spoken) > MANY:
            return dict.fromkeys(spoken)
        return {index: self._turn(index) for index in spoken}

    # -- one by one -------------------------------------------------------------------------------------------------------

    def _turn(self, index: int) -> Turn | None:
        """The turn of message `index`, by rendering all that comes before it."""
        start = self._prompt(index)
        if start is None or not self._text.startswith(start):
            return None
        try:
            alone = self._render(self._messages[: index + 1], False)
        except InvalidInput:
            alone = self._text
        shared = shared_length(self._text, alone)
        # An answer that is shown otherwise once the conversation goes on (without its reasoning, say) is not whole in the text.
        if shared < max(len(start), self.end(alone, len(start), len(alone), self._messages[index])[0]):
            return None
        return Turn(len(start), *self.end(self._text, len(start), shared, self._messages[index]))

    def _prompt(self, index: int) -> str | None:
        """The serving prompt for message `index`; None where the template refuses to write it."""
        try:
            return self._render(self._messages[:index], True)
        except InvalidInput:
            if index:
                return None
        # Some templates refuse an empty conversation: what two different answers share is what comes before an answer.
        one, other = (self._render([{"role": "assistant", "content": probe}], False) for probe in PROBES)
        return one[: shared_length(one, other)]

    # -- message by message -----------------------------------------------------------------------------------------------

    def _in_steps(self) -> Mapping[int, Turn | None] | None:
        """Every turn, where the text is what each message adds to the ones before it; else None."""
        units = _units(self._messages)
        asking = _asking(units)
        try:
            steps = [self._step(units, number, asking[number]) for number in range(len(units))]
        except InvalidInput:
            return None
        if any(step is None for step in steps):
            return None
        added, opening = zip(*(step for step in steps if step), strict=True)
        whole = "".join(added)
        # Nothing follows but the generation prompt.
        if not self._text.startswith(whole) or self._text[len(whole) :] not in ("", opening[-1]):
            return None
        found: dict[int, Turn | None] = {}
        at = 0
        for unit, text, prompt in zip(units, added, opening, strict=True):
            if unit.spoken:
                found[unit.index] = self._turn_at(unit, at, at + len(text), prompt)
            at += len(text)
        return found if self._agrees(found, units, opening) else None

    def _step(self, units: Sequence[_Unit], number: int, user: int | None) -> tuple[str, str] | None:
        """What unit `number` adds to the text, and the generation prompt before it; behind it, for the last one of others."""
        unit, before = units[number], _context(units, number, user)
        if before is None:
            return None
        base = self._render(before, False) if before else ""
        with_it = self._render([*before, *unit.messages], False)
        if not with_it.startswith(base):
            return None
        asked, shown = (before, base) if unit.spoken else ([*before, *unit.messages], with_it)
        if not unit.spoken and number < len(units) - 1:
            return with_it[len(base) :], ""
        prompt = self._render(asked, True)
        return (with_it[len(base) :], prompt[len(shown) :]) if prompt.startswith(shown) else None

    def _turn_at(self, unit: _Unit, start: int, end: int, prompt: str) -> Turn | None:
        if not self._text.startswith(prompt, start):
            return None
        start += len(prompt)
        return Turn(start, *self.end(self._text, start, end, unit.messages[0]))

    def _agrees(self, found: Mapping[int, Turn | None], units: Sequence[_Unit], opening: Sequence[str]) -> bool:
        """Whether a few of the turns, first and last among them, are found at the same place by rendering all before them."""
        prompts = {unit.index: prompt for unit, prompt in zip(units, opening, strict=True) if unit.spoken}
        indices = [index for index, turn in found.items() if turn]
        for index in indices[:: max(1, len(indices) // (FEW - 1))] + indices[-1:]:
            turn, prompt = found[index], self._prompt(index)
            if turn is None or prompt is None or len(prompt) != turn.start or not self._text.startswith(prompt):
                return False
            if not prompt.endswith(prompts[index]):
                return False
        return True

    # -- the end of a turn ------------------------------------------------------------------------------------------------

    def end(self, text: str, start: int, stop: int, message: Message) -> tuple[int, bool]:
        """The end of the turn in `text[start:stop]`: after the first control token behind its content."""
        content = str(message.get("content") or "").strip()
        at = self._find(text, content, start, stop)
        behind = at + len(content) if at >= 0 else start
        match = self._tokens.find_special(text, behind, stop)
        while message.get("tool_calls") and match and self._tokens.id_of(match[0]) not in self._stop_ids:
            # Calls may be marked by control tokens of their own, which end nothing.
            match = self._tokens.find_special(text, match.end(), stop)
        if match:
            return match.end(), True
        return (behind if at >= 0 and not message.get("tool_calls") else stop), False

    def _find(self, text: str, content: str, start: int, stop: int) -> int:
        """Where `content` stands in the turn, or -1. A short answer may also be spelled inside a control token."""
        if not content:
            return -1
        first = start + len(text[start:stop]) - len(text[start:stop].lstrip())
        if text.startswith(content, first):
            return first
        control = [match.span() for match in self._tokens.all_special(text[start:stop])]
        at = text.rfind(content, start, stop)
        while at >= 0 and any(low < at + len(content) - start and at - start < high for low, high in control):
            at = text.rfind(content, start, at + len(content) - 1)
        return at


def _units(messages: Sequence[Message]) -> list[_Unit]:
    units = []
    places = groupby(enumerate(messages), key=lambda pair: bool(pair[1]["role"] == "assistant"))
    for spoken, group in places:
        run = list(group)
        own = [[pair] for pair in run] if spoken else [run]
        units += [_Unit(pairs[0][0], spoken, [message for _, message in pairs]) for pairs in own]
    return units


def _asking(units: Sequence[_Unit]) -> list[int | None]:
    """For each unit, the last one before it in which the user says something."""
    found: list[int | None] = []
    last = None
    for at, unit in enumerate(units):
        found.append(last)
        last = at if any(message["role"] == "user" for message in unit.messages) else last
    return found


def _context(units: Sequence[_Unit], number: int, user: int | None) -> list[Message] | None:
    """The few messages that unit `number` follows: system messages, what the user said last, and what came just before."""
    if number == 0:
        return []
    if user is None:
        return None
    near = [at for at in (number - 2, number - 1) if at > user]
    if not units[number].spoken:
        near = near[-1:]
    head = _head(units[0]) if user else []
    return [*head, *(message for at in (user, *near) for message in units[at].messages)]


def _head(unit: _Unit) -> list[Message]:
    roles = ("system", "developer")
    count = next((at for at, message in enumerate(unit.messages) if message["role"] not in roles), len(unit.messages))
    return [] if unit.spoken else unit.messages[:count]


def shared_length(text: str, other: str) -> int:
    """How many characters the two begin with alike."""
    if text.startswith(other):
        return len(other)
    if other.startswith(text):
        return len(text)
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text[:middle] == other[:middle] else (low, middle - 1)
    return low
