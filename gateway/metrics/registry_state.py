"""What the registry and the disks under it say of themselves, read anew for every scrape."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tunery.registry.errors import TuneryError
from tunery.registry.jobs.counts import JobCounts
from tunery.registry.registry import Registry
from tunery.registry.webhooks.outbox import Pending

__all__ = ["Disk", "RegistryContents", "RegistryState", "read_state"]

MAX_ALIASES = 400
"""Aliases that are shown, `production` and `canary` first."""


class Disk(msgspec.Struct, frozen=True):
    """Bytes of a disk, and how many of them may still be written."""

    size: int
    free: int


class RegistryContents(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the database. `aliases` are adapter, alias and version number."""

    jobs: JobCounts
    batches: Mapping[str, int]
    webhooks: Pending
    aliases: tuple[tuple[str, str, int], ...]


class RegistryState(msgspec.Struct, frozen=True, kw_only=True):
    """The registry now; without `contents` where it cannot be read."""

    contents: RegistryContents | None
    is_writable: bool
    disks: Mapping[str, Disk]


def read_state(registry: Registry) -> RegistryState:
    """Read everything; blocks as long as the disk does, and raises nothing."""
    try:
        contents = RegistryContents(
            jobs=registry.queue.counts(),
            batches=registry.batches.states(),
            webhooks=registry.webhooks.pending(),
            aliases=tuple(registry.all_aliases(limit=MAX_ALIASES)),
        )
    except TuneryError:
        contents = None
    return RegistryState(contents=contents, is_writable=registry.database.is_writable(), disks=_disks(registry))


def _disks(registry: Registry) -> dict[str, Disk]:
    """The disks of the home and of the blobs, which may be one."""
    places = {"home": registry.home.root, "blobs": registry.home.blobs}
    return {place: disk for place, path in places.items() if (disk := _disk(path)) is not None}


def _disk(path: Path) -> Disk | None:
    try:
        space = os.statvfs(path)
    except OSError:
        return None
    return Disk(size=space.f_blocks * space.f_frsize, free=space.f_bavail * space.f_frsize)
