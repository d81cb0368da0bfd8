"""The resident tier: adapters that can be applied now, with their holders and pins, in the order of their use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from tunery.gateway.engine.adapters.interface import AdapterT
from tunery.gateway.engine.messages import Resident

__all__ = ["ResidentTier"]


@dataclass(slots=True)
class _Entry(Generic[AdapterT]):
    held: AdapterT
    bytes: int
    holders: int = 0
    pinned: bool = False
    leaving: bool = False  # removed when its last holder releases it


class ResidentTier(Generic[AdapterT]):
    """Adapters by digest, least recently used first.

    `bytes` is the memory of all, `idle_bytes` that of adapters that may be evicted, `pinned_bytes` that of pinned ones.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.idle_bytes = self.pinned_bytes = 0
        self._entries: OrderedDict[str, _Entry[AdapterT]] = OrderedDict()
        self._idle: OrderedDict[str, _Entry[AdapterT]] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._entries

    def resident(self) -> list[Resident]:
        """All adapters, least recently used first."""
        return [
            Resident(digest, one.held.source.name, one.held.source.number, one.bytes, one.holders, one.pinned)
            for digest, one in self._entries.items()
        ]

    def put(self, digest: str, held: AdapterT) -> None:
        """Add an adapter that is not resident yet; it counts as used now."""
        entry = self._entries[digest] = _Entry(held, held.bytes)
        self.bytes += entry.bytes
        self._used(digest, entry)

    def hold(self, digest: str) -> AdapterT | None:
        """The adapter, for one more holder; None when it is not resident."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        entry.holders += 1
        self._used(digest, entry)
        return entry.held

    def release(self, digest: str) -> None:
        """One holder less; an adapter that is leaving is removed with its last holder."""
        entry = self._entries[digest]
        entry.holders -= 1
        if entry.leaving and not entry.holders:
            self.remove(digest)
        else:
            self._used(digest, entry)

    def pin(self, digest: str) -> bool:
        """Keep the adapter until it is unloaded; whether it is resident."""
        entry = self._entries.get(digest)
        if entry is None:
            return False
        self.pinned_bytes += 0 if entry.pinned else entry.bytes
        entry.pinned, entry.leaving = True, False
        self._used(digest, entry)
        return True

    def unload(self, digest: str) -> int:
        """Remove the adapter, pinned or not, now or with its last holder; its bytes, 0 when it is not resident."""
        entry = self._entries.get(digest)
        if entry is None:
            return 0
        self.pinned_bytes -= entry.bytes if entry.pinned else 0
        entry.pinned, entry.leaving = False, True
        if not entry.holders:
            self.remove(digest)
        return entry.bytes

    def stay(self, digest: str) -> None:
        """Take back an unload that still waits for the last holder."""
        if digest in self._entries:
            self._entries[digest].leaving = False

    def oldest(self, needed: int, spared: Callable[[str], bool]) -> list[str]:
        """The idle adapters to evict for `needed` bytes more, least recently used first; nothing
        when they do not suffice."""
        digests: list[str] = []
        if self.idle_bytes < needed:
            return digests
        for digest, entry in self._idle.items():
            if needed <= 0:
                break
            if not spared(digest):
                digests.append(digest)
                needed -= entry.bytes
        return digests if needed <= 0 else []

    def remove(self, digest: str) -> AdapterT:
        """Take an adapter out; its memory is free when the caller lets go of it."""
        entry = self._entries.pop(digest)
        self.bytes -= entry.bytes
        if self._idle.pop(digest, None) is not None:
            self.idle_bytes -= entry.bytes
        return entry.held

    def _used(self, digest: str, entry: _Entry[AdapterT]) -> None:
        """Count an adapter as used just now, and as idle or not."""
        self._entries.move_to_end(digest)
        if self._idle.pop(digest, None) is not None:
            self.idle_bytes -= entry.bytes
        if not (entry.holders or entry.pinned):
            self._idle[digest] = entry
            self.idle_bytes += entry.bytes
