"""A sliding window: what was used in the last minute, in slots of a few seconds.

Time is a monotonic clock's, so that a wall clock that jumps neither opens nor closes a window. What was used in a slot
counts until a whole minute has passed since the slot's end: in no minute more is used than the limit, and what was used
is free again after 60 to 65 seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SLOT_SECONDS", "WINDOW_SECONDS", "WINDOW_SLOTS", "SlidingWindow", "slot_of"]

WINDOW_SECONDS = 60
SLOT_SECONDS = 5
WINDOW_SLOTS = WINDOW_SECONDS // SLOT_SECONDS + 1
"""Slots that count: the present one and those that ended less than a minute ago."""


def slot_of(now: float) -> int:
    """The slot of a time."""
    return int(now // SLOT_SECONDS)


class SlidingWindow:
    """What was used, by slot. Amounts are whole numbers; `now` never goes back by more than a slot."""

    def __init__(self, slots: Mapping[int, int] | None = None) -> None:
        self._slots = dict(sorted((slots or {}).items()))
        self._total = sum(self._slots.values())

    def used(self, now: float) -> int:
        """What counts at a time."""
        oldest = slot_of(now) - WINDOW_SLOTS
        while self._slots and (first := next(iter(self._slots))) <= oldest:
            self._total -= self._slots.pop(first)
        return self._total

    def add(self, amount: int, now: float) -> int:
        """Count an amount; returns the slot to give it back to."""
        slot = slot_of(now)
        if self._slots and slot < (last := next(reversed(self._slots))):
            slot = last
        self._slots[slot] = self._slots.get(slot, 0) + amount
        self._total += amount
        return slot

    def give_back(self, amount: int, slot: int) -> None:
        """Count an amount no longer, where its slot still counts."""
        if slot in self._slots:
            amount = min(amount, self._slots[slot])
            self._slots[slot] -= amount
            self._total -= amount

    def wait(self, amount: int, limit: int, now: float) -> float | None:
        """Seconds until an amount fits under a limit: 0 for now, None for never."""
        if amount > limit:
            return None
        excess = self.used(now) + amount - limit
        if excess <= 0:
            return 0.0
        for slot, used in self._slots.items():
            excess -= used
            if excess <= 0:
                return (slot + WINDOW_SLOTS) * SLOT_SECONDS - now
        return float(WINDOW_SECONDS)

    def empty_in(self, now: float) -> float:
        """Seconds until nothing counts any more."""
        if not self.used(now):
            return 0.0
        last = next(slot for slot, used in reversed(self._slots.items()) if used)
        return (last + WINDOW_SLOTS) * SLOT_SECONDS - now
