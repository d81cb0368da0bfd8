"""The answers of a batch that runs: files that are only appended to, one for each claim, from which the results are made.

Nobody writes to another claim's file, so a gateway that was believed dead and still writes does no harm: what it appends
after its file was read is not seen, and those requests are answered again. The same goes for a line that a crash has cut
short.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from tunery.registry.records import BatchCounts
from tunery.registry.storage.disk import sync

__all__ = ["Entry", "Journal", "Tokens"]

Tokens = tuple[int, int, int]
"""Input tokens, those of them that were in the prefix cache, and output tokens."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """The answer to the request in one line of the input, as a line of the results without its end."""

    line: int
    failed: bool
    tokens: Tokens
    answer: msgspec.Raw


class _Place(NamedTuple):
    """Where an answer is, in bytes, and of which kind."""

    path: Path
    offset: int
    size: int
    failed: bool


class Journal:
    """The answers of one batch under `folder`, read at the start; new ones go to the file of the claim `fence`.

    `counts` says how many there are, of `total` requests. Raises OSError where the disk fails.
    """

    def __init__(self, folder: Path, *, fence: int, total: int) -> None:
        self.counts = BatchCounts(total=total)
        self._places: dict[int, _Place] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"answers-{fence:08}.jsonl"
        for path in sorted(folder.glob("answers-*.jsonl")):
            if path < self._path:
                self._read(path)
        self._file = self._path.open("xb")
        self._size = 0
        sync(folder)

    def __contains__(self, line: int) -> bool:
        return line in self._places

    def append(self, entries: Sequence[Entry]) -> None:
        """Add answers, and wait until they are on the disk."""
        encoded = [msgspec.json.encode(entry) + b"\n" for entry in entries]
        self._file.write(b"".join(encoded))
        self._file.flush()
        os.fsync(self._file.fileno())
        for entry, data in zip(entries, encoded, strict=True):
            self._note(entry, _Place(self._path, self._size, len(data), entry.failed))
            self._size += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def write_results(self, output: Path, failures: Path, *, unanswered: Iterable[bytes] = ()) -> None:
        """Write the answers, and the failures with those that were not even tried, in the order of the input."""
        files: dict[Path, BinaryIO] = {}
        try:
            with output.open("wb") as good, failures.open("wb") as bad:
                for _, place in sorted(self._places.items()):
                    if place.path not in files:
                        files[place.path] = place.path.open("rb")
                    files[place.path].seek(place.offset)
                    entry = msgspec.json.decode(files[place.path].read(place.size), type=Entry)
                    (bad if place.failed else good).write(bytes(entry.answer) + b"\n")
                for line in unanswered:
                    bad.write(line + b"\n")
        finally:
            for file in files.values():
                file.close()

    def _read(self, path: Path) -> None:
        """Take in what another claim has answered, as far as it is whole."""
        offset = 0
        with path.open("rb") as file:
            for data in file:
                if data.endswith(b"\n") and (entry := _entry(data)) is not None and entry.line not in self._places:
                    self._note(entry, _Place(path, offset, len(data), entry.failed))
                offset += len(data)

    def _note(self, entry: Entry, place: _Place) -> None:
        self._places[entry.line] = place
        counts = self.counts
        self.counts = BatchCounts(
            total=counts.total,
            completed=counts.completed + (not entry.failed),
            failed=counts.failed + entry.failed,
            input_tokens=counts.input_tokens + entry.tokens[0],
            cached_tokens=counts.cached_tokens + entry.tokens[1],
            output_tokens=counts.output_tokens + entry.tokens[2],
        )


def _entry(data: bytes) -> Entry | None:
    try:
        return msgspec.json.decode(data, type=Entry)
    except msgspec.DecodeError:
        return None
