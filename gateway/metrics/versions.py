"""Which versions have series of their own: those that answered last, so that a canary can be compared with what it is
to replace."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["MAX_VERSIONS", "RecentVersions"]

MAX_VERSIONS = 100
"""Versions, of all adapters together, that have series."""

Version = tuple[str, str]
"""The labels `adapter` and `version`."""


class RecentVersions:
    """The last MAX_VERSIONS versions that answered."""

    def __init__(self) -> None:
        self._versions: OrderedDict[Version, None] = OrderedDict()

    def use(self, version: Version) -> tuple[bool, Version | None]:
        """A version answers: whether it had no series, and the one that loses its series for it."""
        is_new = version not in self._versions
        self._versions[version] = None
        self._versions.move_to_end(version)
        if len(self._versions) <= MAX_VERSIONS:
            return is_new, None
        return is_new, self._versions.popitem(last=False)[0]
