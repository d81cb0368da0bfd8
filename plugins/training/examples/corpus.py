"""From files to examples: rows are read, rendered, cut to length, and split so that equal rows are never on both sides.

Rows that do not suit the trainer are refused: preference pairs for a supervised trainer, single
answers for a preference trainer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tunery.plugins.data.read import data_digest
from tunery.plugins.data.read.dataset import read_rows
from tunery.plugins.data.read.row import Row
from tunery.plugins.data.render.examples import RenderedExample
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.hookspecs import FormatInfo
from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.training.examples.batches import Example
from tunery.registry.errors import InvalidData, InvalidInput

__all__ = ["Corpus", "DataFile", "read_corpus"]


class DataFile(msgspec.Struct, frozen=True):
    """A data file as it was when it was read."""

    name: str
    sha256: str
    size: int
    rows: int
    format: str


class Corpus(msgspec.Struct, frozen=True):
    """Training and held-out examples; `cut` is how many were cut to `max_length`."""

    train: list[Example]
    held_out: list[Example]
    files: list[DataFile]
    cut: int


def read_corpus(
    data: Sequence[Path],
    validation: Path | None,
    parameters: TrainingParameters,
    *,
    formats: Mapping[str, FormatInfo],
    renderer: Renderer,
    preferences: bool = False,
) -> Corpus:
    """Read all files, as preference pairs if `preferences`; raise InvalidData naming every bad line of every file.

    Without `validation`, the `eval_fraction` of the parameters is held out.
    """
    files: list[DataFile] = []
    problems: list[str] = []
    groups: list[list[tuple[Row, list[Example]]]] = []
    cut = 0
    paths = [*data, *([validation] if validation else [])]
    for path, name in zip(paths, _names(paths), strict=True):
        try:
            rows = read_rows(path, formats=formats)
        except InvalidData as error:
            problems += error.problems or (error.message,)
            groups.append([])
            continue
        rendered, bad, shortened = _render(name, rows, renderer, parameters.max_length, preferences)
        problems += bad
        cut += shortened
        sha256, size = data_digest(path)
        files.append(DataFile(path.name, sha256, size, len(rows), rows[0].format))
        groups.append(rendered)
    if problems:
        count = len(problems)
        raise InvalidData(f"{count} problem{'s' * (count > 1)} in the data; nothing was trained", problems=problems)
    held_out = groups.pop() if validation else []
    train = [pair for group in groups for pair in group]
    if not validation and parameters.eval_fraction:
        train, held_out = _split(train, parameters.eval_fraction, parameters.seed)
    return Corpus(_flat(train), _flat(held_out), files, cut)


def _names(paths: Sequence[Path]) -> list[str]:
    """How files are called in messages: by name, with the folder when two have the same name."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [f"{path.parent.name}/{path.name}" for path in paths]


def _render(
    name: str, rows: Sequence[Row], renderer: Renderer, max_length: int, preferences: bool
) -> tuple[list[tuple[Row, list[Example]]], list[str], int]:
    """Rows with their examples, problems, and how many examples were cut."""
    read = _pair if preferences else _answers
    rendered, problems, cut = [], [], 0
    for row in rows:
        try:
            own, shortened = read(name, row, renderer, max_length)
        except InvalidInput as error:
            problems.append(f"{name}:{row.line}: {error.message}")
            continue
        cut += shortened
        rendered.append((row, own))
    return rendered, problems, cut


def _answers(name: str, row: Row, renderer: Renderer, max_length: int) -> tuple[list[Example], int]:
    """The examples of a supervised row, and how many were cut."""
    if row.rejected is not None:
        raise InvalidInput(
            "has a rejected answer, which this trainer would ignore; keep the better answer as a chat row, or train with "
            "--method dpo"
        )
    examples = [_cut(example, max_length) for example in renderer.examples(row.messages, tools=row.tools)]
    return [Example(ids, trained, row.line, name) for ids, trained, _ in examples], sum(lost for *_, lost in examples)


def _pair(name: str, row: Row, renderer: Renderer, max_length: int) -> tuple[list[Example], int]:
    """The example of a preference pair, and 1 if it was cut."""
    if row.rejected is None:
        raise InvalidInput(
            "has no rejected answer, and this trainer learns from pairs; add the worse answer as `rejected`, or train with "
            "--method lora"
        )
    halves = [_cut(renderer.example(answered, tools=row.tools), max_length) for answered in row.conversations]
    (ids, trained, lost), (worse, wanted, missing) = halves
    if ids == worse:
        raise InvalidInput(f"both answers are the same within max_length={max_length} tokens; raise max_length")
    rejected = Example(worse, wanted, row.line, name)
    return [Example(ids, trained, row.line, name, rejected)], int(lost or missing)


def _cut(example: RenderedExample, max_length: int) -> tuple[list[int], list[bool], bool]:
    """Ids and trained flags within `max_length`, and whether anything was cut; raise InvalidInput
    when nothing is left to train."""
    ids, trained = example.ids[:max_length], example.trained[:max_length]
    if not any(trained[1:]):
        raise InvalidInput(
            f"nothing is left to train on within max_length={max_length} tokens; shorten the prompt or raise max_length"
        )
    return ids, trained, len(example.ids) > max_length


def _split(
    rows: list[tuple[Row, list[Example]]], fraction: float, seed: int
) -> tuple[list[tuple[Row, list[Example]]], list[tuple[Row, list[Example]]]]:
    """Hold out a share of the distinct rows, chosen by content and seed, so that equal rows (of pairs, those with the
    same prompt) stay together."""

    def key(row: Row) -> str:
        content = row.messages if row.rejected is None else row.prompt_messages
        return hashlib.sha256(f"{seed}/".encode() + msgspec.json.encode(content)).hexdigest()

    distinct = sorted({key(row) for row, _ in rows})
    if len(distinct) < 2:
        return rows, []
    chosen = set(distinct[: max(1, round(fraction * len(distinct)))])
    return [r for r in rows if key(r[0]) not in chosen], [r for r in rows if key(r[0]) in chosen]


def _flat(rows: list[tuple[Row, list[Example]]]) -> list[Example]:
    return [example for _, examples in rows for example in examples]
