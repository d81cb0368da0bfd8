"""Match module names as PEFT does, and refuse patterns that could take forever to match."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import TypeVar

from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.layout import CONFIG

__all__ = ["check_compiles", "check_safe", "first_match", "is_named", "is_within", "layer_of", "paths_of"]

T = TypeVar("T")

# A repeated group can take exponential time to match, many repetitions polynomial time; PEFT needs neither.
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_MAX_REPETITIONS, _MAX_PATTERN = 3, 500


def is_named(module: str, names: str | tuple[str, ...] | None, *, default: bool) -> bool:
    """Whether a list has the end of a module's name, or a pattern matches all of it.

    `default` is for no list at all, an empty one, and a pattern that is not safe to match.
    """
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None if names and _is_safe(names) else default
    return any(module == name or module.endswith(f".{name}") for name in names) if names else default


def is_within(module: str, names: tuple[str, ...]) -> bool:
    """Whether a list has the end of the name of a module or of one that contains it."""
    return any(is_named(path, names, default=False) for path in paths_of(module))


def paths_of(module: str) -> list[str]:
    """A module's name and those of the modules that contain it, outermost first."""
    parts = module.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def first_match(module: str, patterns: Mapping[str, T], default: T) -> T:
    """The value of the first pattern that matches the end of a module's name."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def layer_of(module: str, patterns: tuple[str, ...]) -> int | None:
    """The index of the layer that a module is in: the first number behind one of the patterns, else behind any name."""
    for pattern in patterns or (r"[^.]*",):
        match = re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", module)
        if match:
            return int(match["index"])
    return None


def check_safe(field: str, pattern: str) -> None:
    """Raise ArtifactRefused (artifact_unsafe) unless matching takes a bounded time, and see `check_compiles`."""
    if not _is_safe(pattern):
        raise ArtifactRefused(
            f"{CONFIG} has the pattern {pattern[:60]!r} in {field}, which could take forever to match; write module "
            "names",
            code="artifact_unsafe",
        )
    check_compiles(field, pattern)


def check_compiles(field: str, pattern: str) -> None:
    """Raise ArtifactRefused (artifact_incomplete) unless a pattern is a regular expression."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what may mean something else in a later Python
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ArtifactRefused(
            f"{CONFIG} has {pattern[:60]!r} in {field}, which is not a regular expression: {error}",
            code="artifact_incomplete",
        ) from error


def _is_safe(pattern: str) -> bool:
    repetitions = sum(pattern.count(sign) for sign in "*+{")
    return len(pattern) <= _MAX_PATTERN and repetitions <= _MAX_REPETITIONS and not _REPEATED_GROUP.search(pattern)
