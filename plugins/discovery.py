"""Find installed plugins by their entry points (group `tunery`) and load them one by one.

Built-in plugins are entry points like any other. They are loaded first, then the others by package and name, so that
which plugin gets a contested name does not depend on the order of a folder. A broken plugin is reported by name and the
rest load.

`TUNERY_PLUGINS`, a comma-separated list of names, allows only those besides the built-in ones (empty: none). A listed
name that is not installed is reported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import Distribution, EntryPoint, distributions

from tunery.plugins.manager import GROUP, Plugins

__all__ = ["DISTRIBUTION", "load_plugins"]

DISTRIBUTION = "tunery"
"""The distribution that the built-in plugins belong to."""


def load_plugins(*, allow: Iterable[str] | None = None, without: Iterable[str] = ()) -> Plugins:
    """Load every installed plugin that is allowed.

    `allow` defaults to `TUNERY_PLUGINS`. Built-in plugins are always loaded, unless `without` names them.
    """
    if allow is None and (listed := os.environ.get("TUNERY_PLUGINS")) is not None:
        allow = [name.strip() for name in listed.split(",") if name.strip()]
    allowed, unwanted = None if allow is None else set(allow), set(without)
    plugins, installed = Plugins(), _installed()
    for entry, distribution in installed:
        if entry.name in unwanted:
            continue
        if allowed is None or entry.name in allowed or _is_built_in(distribution):
            plugins.add_entry_point(entry, distribution)
    names = {entry.name for entry, _ in installed}
    plugins.report_missing((allowed or set()) - names, names)
    return plugins


def _installed() -> list[tuple[EntryPoint, Distribution]]:
    """Every entry point, built-in ones first; of a distribution that is on the path twice, only what would be
    imported."""
    by_distribution: dict[str, list[tuple[EntryPoint, Distribution]]] = {}
    for distribution in distributions():
        entries = distribution.entry_points.select(group=GROUP)
        if entries:
            key = distribution.metadata["Name"].lower().replace("_", "-")
            by_distribution.setdefault(key, [(entry, distribution) for entry in entries])
    pairs = [pair for group in by_distribution.values() for pair in group]
    return sorted(pairs, key=lambda pair: (not _is_built_in(pair[1]), pair[1].metadata["Name"], pair[0].name))


def _is_built_in(distribution: Distribution) -> bool:
    name: str = distribution.metadata["Name"]
    return name == DISTRIBUTION
