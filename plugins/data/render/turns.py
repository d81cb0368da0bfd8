"""Find each assistant turn in a rendered conversation.

A turn starts where the serving prompt for it ends, which only the template knows: the messages before it must be
rendered. In a long conversation that would render everything once per turn. Most templates write one message after the
other, so there each turn is rendered with only the few messages before it. The pieces must add up to the whole text,
and are checked against a few whole prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby

import msgspec

from tunery.plugins.data.render.conversation import Message
from tunery.plugins.data.render.tokenizer import BaseTokenizer
from tunery.registry.errors import InvalidInput

__all__ = ["PROBES", "Turn", "TurnFinder", "shared_length", "turn_edges"]

PROBES = ("A probe", "0 probe")
"""Two answers with different first characters, to find where a turn's text begins."""

FEW = 8
"""Up to this many turns are always found one by one."""
MANY = 32
"""Beyond this many turns, those of a template that does not write one message after the other are not found."""


class Turn(msgspec.Struct, frozen=True):
    """An assistant turn in the rendered text: characters `start` to `end`.

    `stops` is true where it ends in an end-of-turn token.
    """

    start: int
    end: int
    stops: bool


class _Unit(msgspec.Struct, frozen=True):
    """An assistant message, or a run of other messages. `index` is that of the first message."""

    index: int
    is_answer: bool
    messages: list[Message]


class TurnFinder:
    """Finds the turns of `messages` in `text`; `render` renders some of them, with the generation prompt or without."""

    def __init__(
        self,
        messages: Sequence[Message],
        text: str,
        *,
        render: Callable[[Sequence[Message], bool], str],
        tokenizer: BaseTokenizer,
        stop_ids: Collection[int],
    ) -> None:
        self._messages, self._text = messages, text
        self._render, self._tokenizer, self._stop_ids = render, tokenizer, stop_ids

    def find(self) -> Mapping[int, Turn | None]:
        """The turn of each assistant message; None where `text` does not begin with its serving prompt and all of the
        turn."""
        answers = [index for index, message in enumerate(self._messages) if message["role"] == "assistant"]
        if len(answers) > FEW and (turns := self._in_steps()) is not None:
            return turns
        if len(answers) > MANY:
            return dict.fromkeys(answers)
        return {index: self._turn(index) for index in answers}

    # -- one by one ----------------------------------------------------------------------------------------------------

    def _turn(self, index: int) -> Turn | None:
        """The turn of message `index`, found by rendering everything before it."""
        start = self._prompt(index)
        if start is None or not self._text.startswith(start):
            return None
        try:
            alone = self._render(self._messages[: index + 1], False)
        except InvalidInput:
            alone = self._text
        shared = shared_length(self._text, alone)
        # An answer that the template shows differently later on (without its reasoning, say) is not whole in the text.
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
        # Some templates refuse an empty conversation: what comes before an answer is what two different answers share.
        one, other = (self._render([{"role": "assistant", "content": probe}], False) for probe in PROBES)
        return one[: shared_length(one, other)]

    # -- message by message --------------------------------------------------------------------------------------------

    def _in_steps(self) -> Mapping[int, Turn | None] | None:
        """Every turn, if the text is the concatenation of what each message adds; else None."""
        units = _units(self._messages)
        last_user = _last_user_units(units)
        try:
            steps = [self._step(units, number, last_user[number]) for number in range(len(units))]
        except InvalidInput:
            return None
        if any(step is None for step in steps):
            return None
        added, opening = zip(*(step for step in steps if step), strict=True)
        whole = "".join(added)
        # Nothing follows but the generation prompt.
        if not self._text.startswith(whole) or self._text[len(whole) :] not in ("", opening[-1]):
            return None
        turns: dict[int, Turn | None] = {}
        at = 0
        for unit, text, prompt in zip(units, added, opening, strict=True):
            if unit.is_answer:
                turns[unit.index] = self._turn_at(unit, at, at + len(text), prompt)
            at += len(text)
        return turns if self._verified(turns, units, opening) else None

    def _step(self, units: Sequence[_Unit], number: int, user: int | None) -> tuple[str, str] | None:
        """What unit `number` adds to the text, and its generation prompt: before an answer, or after a final unit of
        other messages."""
        unit, before = units[number], _context(units, number, user)
        if before is None:
            return None
        base = self._render(before, False) if before else ""
        with_it = self._render([*before, *unit.messages], False)
        if not with_it.startswith(base):
            return None
        context, shown = (before, base) if unit.is_answer else ([*before, *unit.messages], with_it)
        if not unit.is_answer and number < len(units) - 1:
            return with_it[len(base) :], ""
        prompt = self._render(context, True)
        return (with_it[len(base) :], prompt[len(shown) :]) if prompt.startswith(shown) else None

    def _turn_at(self, unit: _Unit, start: int, end: int, prompt: str) -> Turn | None:
        if not self._text.startswith(prompt, start):
            return None
        start += len(prompt)
        return Turn(start, *self.end(self._text, start, end, unit.messages[0]))

    def _verified(self, turns: Mapping[int, Turn | None], units: Sequence[_Unit], opening: Sequence[str]) -> bool:
        """Whether a few of the turns, the first and last among them, are at the same place when everything before them
        is rendered."""
        prompts = {unit.index: prompt for unit, prompt in zip(units, opening, strict=True) if unit.is_answer}
        indices = [index for index, turn in turns.items() if turn]
        for index in indices[:: max(1, len(indices) // (FEW - 1))] + indices[-1:]:
            turn, prompt = turns[index], self._prompt(index)
            if turn is None or prompt is None or len(prompt) != turn.start or not self._text.startswith(prompt):
                return False
            if not prompt.endswith(prompts[index]):
                return False
        return True

    # -- the end of a turn ---------------------------------------------------------------------------------------------

    def end(self, text: str, start: int, stop: int, message: Message) -> tuple[int, bool]:
        """The end of the turn in `text[start:stop]`, after the first control token behind its content, and whether
        there is one."""
        content = str(message.get("content") or "").strip()
        at = self._find(text, content, start, stop)
        behind = at + len(content) if at >= 0 else start
        match = self._tokenizer.special.find(text, behind, stop)
        while message.get("tool_calls") and match and self._tokenizer.id_of(match[0]) not in self._stop_ids:
            # Calls may be marked by control tokens of their own, which do not end the turn.
            match = self._tokenizer.special.find(text, match.end(), stop)
        if match:
            return match.end(), True
        return (behind if at >= 0 and not message.get("tool_calls") else stop), False

    def _find(self, text: str, content: str, start: int, stop: int) -> int:
        """The position of `content` in the turn, or -1. A short answer may also occur inside a control token."""
        if not content:
            return -1
        first = start + len(text[start:stop]) - len(text[start:stop].lstrip())
        if text.startswith(content, first):
            return first
        control = [match.span() for match in self._tokenizer.special.find_all(text[start:stop])]
        at = text.rfind(content, start, stop)
        while at >= 0 and any(low < at + len(content) - start and at - start < high for low, high in control):
            at = text.rfind(content, start, at + len(content) - 1)
        return at


def _units(messages: Sequence[Message]) -> list[_Unit]:
    units = []
    places = groupby(enumerate(messages), key=lambda pair: bool(pair[1]["role"] == "assistant"))
    for is_answer, group in places:
        run = list(group)
        groups = [[pair] for pair in run] if is_answer else [run]
        units += [_Unit(pairs[0][0], is_answer, [message for _, message in pairs]) for pairs in groups]
    return units


def _last_user_units(units: Sequence[_Unit]) -> list[int | None]:
    """For each unit, the number of the last unit before it with a user message."""
    units_of_users: list[int | None] = []
    last = None
    for at, unit in enumerate(units):
        units_of_users.append(last)
        last = at if any(message["role"] == "user" for message in unit.messages) else last
    return units_of_users


def _context(units: Sequence[_Unit], number: int, user: int | None) -> list[Message] | None:
    """The messages to render before unit `number`: system messages, the last user message, and what came just
    before."""
    if number == 0:
        return []
    if user is None:
        return None
    near = [at for at in (number - 2, number - 1) if at > user]
    if not units[number].is_answer:
        near = near[-1:]
    head = _head(units[0]) if user else []
    return [*head, *(message for at in (user, *near) for message in units[at].messages)]


def _head(unit: _Unit) -> list[Message]:
    roles = ("system", "developer")
    count = next((at for at, message in enumerate(unit.messages) if message["role"] not in roles), len(unit.messages))
    return [] if unit.is_answer else unit.messages[:count]


def turn_edges(turns: Iterable[Turn | None]) -> list[int]:
    """Where turns begin and end, ascending."""
    return sorted({edge for turn in turns if turn for edge in (turn.start, turn.end)})


def shared_length(text: str, other: str) -> int:
    """The length of the common prefix of two texts."""
    if text.startswith(other):
        return len(other)
    if other.startswith(text):
        return len(text)
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text[:middle] == other[:middle] else (low, middle - 1)
    return low
