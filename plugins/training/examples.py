"""Owns going from files to examples: rows read and rendered, cut to length, split without a row on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tunery.plugins.data.renderer import Renderer
from tunery.plugins.data.rows import Row, read_rows
from tunery.plugins.hookspecs import FormatInfo
from tunery.plugins.training.batches import Example
from tunery.registry.digest import file_digest
from tunery.registry.errors import InvalidData, InvalidInput

__all__ = ["Corpus", "DataFile", "read_corpus"]


class DataFile(msgspec.Struct, frozen=True):
    """A file as it was when it was read."""

    name: str
    sha256: str
    size: int
    rows: int
    format: str


class Corpus(msgspec.Struct, frozen=True):
    """What is trained on and what is held out; `cut` examples lost their end to `max_length`."""

    train: list[Example]
    held_out: list[Example]
    files: list[DataFile]
    cut: int


def read_corpus(
    data: Sequence[Path],
    validation: Path | None,
    *,
    formats: Mapping[str, FormatInfo],
    renderer: Renderer,
    max_length: int,
    eval_fraction: float,
    seed: int,
) -> Corpus:
    """Read everything; raise InvalidData naming every bad line of every file."""
    files: list[DataFile] = []
    problems: list[str] = []
    groups: list[list[tuple[Row, list[Example]]]] = []
    cut = 0
    for path in [*data, *([validation] if validation else [])]:
        try:
            rows = read_rows(path, formats=formats)
        except InvalidData as error:
            problems += error.problems or (error.message,)
            groups.append([])
            continue
        rendered, bad, shortened = _render(path, rows, renderer, max_length)
        problems += bad
        cut += shortened
        sha256, size = file_digest(path)
        files.append(DataFile(path.name, sha256, size, len(rows), rows[0].format))
        groups.append(rendered)
    if problems:
        count = len(problems)
        raise InvalidData(f"{count} problem{'s' * (count > 1)} in the data; nothing was trained", problems=problems)
    held_out = groups.pop() if validation else []
    train = [pair for group in groups for pair in group]
    if not validation and eval_fraction:
        train, held_out = _split(train, eval_fraction, seed)
    return Corpus(_flat(train), _flat(held_out), files, cut)


def _render(
    path: Path, rows: Sequence[Row], renderer: Renderer, max_length: int
) -> tuple[list[tuple[Row, list[Example]]], list[str], int]:
    """Rows with their examples, what is wrong with them, and how many had to be cut."""
    rendered, problems, cut = [], [], 0
    for row in rows:
        own = []
        if row.rejected is not None:
            problems.append(
                f"{path.name}:{row.line}: has a rejected answer, which this trainer would ignore; keep the better answer as a "
                "chat row, or use a trainer of preferences"
            )
            continue
        try:
            for example in renderer.examples(row.messages, tools=row.tools):
                cut += len(example.ids) > max_length
                own.append(Example(example.ids[:max_length], example.trained[:max_length], row.line, path.name))
        except InvalidInput as error:
            problems.append(f"{path.name}:{row.line}: {error.message}")
            continue
        if not all(example.targets for example in own):
            problems.append(
                f"{path.name}:{row.line}: nothing is left to train on within max_length={max_length} tokens; "
                "shorten the prompt or raise max_length"
            )
        rendered.append((row, own))
    return rendered, problems, cut


def _split(
    rows: list[tuple[Row, list[Example]]], fraction: float, seed: int
) -> tuple[list[tuple[Row, list[Example]]], list[tuple[Row, list[Example]]]]:
    """Hold out a share of the distinct rows, chosen by their content and the seed, so that equal rows stay together."""

    def key(row: Row) -> str:
        return hashlib.sha256(f"{seed}/".encode() + msgspec.json.encode(row.messages)).hexdigest()

    distinct = sorted({key(row) for row, _ in rows})
    if len(distinct) < 2:
        return rows, []
    chosen = set(distinct[: max(1, round(fraction * len(distinct)))])
    return [r for r in rows if key(r[0]) not in chosen], [r for r in rows if key(r[0]) in chosen]


def _flat(rows: list[tuple[Row, list[Example]]]) -> list[Example]:
    return [example for _, examples in rows for example in examples]
