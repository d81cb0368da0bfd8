"""Split a file into training rows and held-out rows, so that similar rows stay together.

Rows with equal prompts, and near duplicates, form a group, and a group goes to one side. Which side depends only on
their content and the seed, not on their order. Lines are copied byte for byte; rows of other kinds of files are written
as JSON Lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tunery.plugins.data.checks.minhash import SimilarIndex
from tunery.plugins.data.checks.parsed_record import Location, ParsedRecord
from tunery.plugins.data.read import iter_records
from tunery.plugins.data.read.row import Row
from tunery.plugins.hookspecs import FormatInfo
from tunery.registry.errors import Conflict, InvalidData, InvalidInput, StorageFailed

__all__ = ["Split", "SplitOptions", "split_file"]

_PROBLEMS = 100
"""Problems that an error lists."""


class Split(msgspec.Struct, frozen=True):
    """The result: the two files, the rows in each, and the number of groups."""

    train: Path
    held_out: Path
    train_rows: int
    held_out_rows: int
    groups: int


class SplitOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a file is split: about `fraction` (0 to 1) of its rows are held out; another `seed` chooses others.

    `replace` allows files that exist to be replaced.
    """

    fraction: float
    seed: int = 0
    replace: bool = False


class _Groups:
    """Which rows belong together: disjoint sets, with path halving."""

    def __init__(self) -> None:
        self._parents: list[int] = []

    def add(self) -> int:
        """Add a row in a group of its own; return its number."""
        self._parents.append(len(self._parents))
        return len(self._parents) - 1

    def find(self, row: int) -> int:
        """The row that represents a row's group."""
        while self._parents[row] != row:
            self._parents[row] = self._parents[self._parents[row]]
            row = self._parents[row]
        return row

    def join(self, one: int, other: int) -> None:
        """Merge the groups of two rows."""
        self._parents[self.find(one)] = self.find(other)

    def __len__(self) -> int:
        return len(self._parents)


def split_file(
    path: Path, train: Path, held_out: Path, options: SplitOptions, *, formats: Sequence[FormatInfo]
) -> Split:
    """Write the rows of `path` to `train` and `held_out`.

    Raises InvalidData that names bad lines, or where all rows belong together, and Conflict where a file exists that
    may not be replaced.
    """
    if not 0 < options.fraction < 1:
        raise InvalidInput(f"fraction={options.fraction:g} must lie between 0 and 1, for example 0.1", param="fraction")
    path = Path(path)
    for target in (train, held_out):
        if target.exists() and not options.replace:
            raise Conflict(f"{target} exists already; move it away or allow replacing it")
        if target.resolve() == path.resolve() or train.resolve() == held_out.resolve():
            raise InvalidInput("the file and its two halves must be three different files")
    groups, keys, lines = _group(path, formats)
    chosen = _choose(groups, keys, options)
    outside = {line for line, row in lines.items() if groups.find(row) in chosen}
    _write(path, train, [line for line in lines if line not in outside])
    _write(path, held_out, sorted(outside))
    distinct = len({groups.find(row) for row in range(len(groups))})
    return Split(train, held_out, len(lines) - len(outside), len(outside), distinct)


def _group(path: Path, formats: Sequence[FormatInfo]) -> tuple[_Groups, list[bytes], dict[int, int]]:
    """The groups, the prompt key of each row, and the row number of each line that holds one."""
    groups, keys, lines = _Groups(), list[bytes](), dict[int, int]()
    prompts: dict[bytes, int] = {}
    near: SimilarIndex[int] = SimilarIndex()
    problems: list[str] = []
    advice: list[str] = []
    first: Row | None = None
    for number, raw in iter_records(path):
        record = ParsedRecord(Location(path.name, number), raw, formats=formats, renderer=None)
        if record.invalid:
            problems += record.invalid.problems(str(record.location))
        if len(problems) > _PROBLEMS:
            advice.append("there may be more after these")
            break
        if record.row is None:
            continue
        first = first or record.row
        if record.row.format != first.format:
            problems.append(
                f"{record.location}: $: is in the format {record.row.format}, line {first.line} in {first.format}; keep one format a file"
            )
        row = lines[number] = groups.add()
        keys.append(record.prompt_key)
        groups.join(row, prompts.setdefault(record.prompt_key, row))
        if record.signature:
            if (similar := near.find(record.signature)) is not None:
                groups.join(row, similar[0])
            else:
                near.add(record.signature, row)
    if problems:
        raise InvalidData(f"{path} has bad lines; nothing was written", problems=problems, advice=advice)
    if not keys:
        raise InvalidData(f"{path} has no rows; nothing was written")
    return groups, keys, lines


def _choose(groups: _Groups, keys: Sequence[bytes], options: SplitOptions) -> set[int]:
    """The groups to hold out: at least one, not all, and no more rows than the fraction where possible."""
    members: dict[int, list[bytes]] = {}
    for row, key in enumerate(keys):
        members.setdefault(groups.find(row), []).append(key)
    if len(members) < 2:
        raise InvalidData(
            f"the {len(keys)} rows belong together (one prompt, or near duplicates): add rows that differ"
        )

    def order(group: int) -> bytes:
        return hashlib.sha256(f"{options.seed}/".encode() + min(members[group])).digest()

    shuffled = sorted(members, key=order)
    room = max(1, round(options.fraction * len(keys)))
    chosen: set[int] = set()
    for group in shuffled:
        if len(members[group]) <= room:
            chosen.add(group)
            room -= len(members[group])
    return chosen or {min(shuffled, key=lambda group: len(members[group]))}


def _write(source: Path, target: Path, wanted: Sequence[int]) -> None:
    """Copy the wanted lines. The target is written as a whole or not at all."""
    kept = set(wanted)
    partial = target.with_name(target.name + ".part")
    try:
        with partial.open("wb") as file:
            for raw in _lines(source, kept):
                file.write(raw)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageFailed(
            f"{target} cannot be written ({error.strerror}); free space or choose another location"
        ) from error


def _lines(source: Path, kept: set[int]) -> Iterator[bytes]:
    for number, raw in iter_records(source):
        if number in kept:
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            yield raw if raw.endswith(b"\n") else raw + b"\n"
