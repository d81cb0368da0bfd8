"""Show one row as the model will see it: its text, and which tokens are trained."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import msgspec

from tunery.plugins.data.checks.parsed_record import Location, ParsedRecord
from tunery.plugins.data.read import iter_records
from tunery.plugins.data.render.examples import RenderedExample
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.hookspecs import FormatInfo
from tunery.registry.errors import InvalidData, InvalidInput, NotFound

__all__ = ["Preview", "Segment", "preview_line", "read_place"]


class Segment(msgspec.Struct, frozen=True):
    """A run of tokens that are either all trained or all not."""

    text: str
    trained: bool
    tokens: int


class Preview(msgspec.Struct, frozen=True):
    """One example of a row. `cut` is the number of tokens beyond max_length, which training drops."""

    segments: list[Segment]
    ids: list[int]
    trained: list[bool]
    cut: int


def read_place(text: str) -> tuple[Path, int]:
    """Parse `FILE:LINE`. Raises InvalidInput for anything else."""
    name, _, number = text.rpartition(":")
    if not name or not (number.isascii() and number.isdigit()) or int(number) < 1:
        raise InvalidInput(f"{text!r} is not a place in a file: write FILE:LINE, for example rows.jsonl:12")
    return Path(name), int(number)


def preview_line(
    path: Path, number: int, *, formats: Sequence[FormatInfo], renderer: Renderer, max_length: int
) -> list[Preview]:
    """The examples of one line, that of a rejected answer last.

    Raises NotFound without such a line, InvalidData for no row.
    """
    raw = next((raw for at, raw in iter_records(path) if at == number), None)
    if raw is None:
        raise NotFound(f"{path} has no line {number}; lines count from 1")
    record = ParsedRecord(Location(path.name, number), raw, formats=formats, renderer=renderer)
    if record.invalid:
        raise InvalidData(f"{record.location} is not a row", problems=record.invalid.problems(str(record.location)))
    if record.row is None:
        raise InvalidData(f"{record.location} is blank; name a line that holds a row")
    if isinstance(record.rendered, InvalidInput):
        raise record.rendered
    return [_preview(example, renderer, max_length) for example in record.rendered]


def _preview(example: RenderedExample, renderer: Renderer, max_length: int) -> Preview:
    segments = []
    for trained, run in groupby(zip(example.ids, example.trained, strict=True), key=lambda pair: pair[1]):
        ids = [number for number, _ in run]
        segments.append(Segment(renderer.decode(ids, skip_special=False), trained, len(ids)))
    return Preview(segments, example.ids, example.trained, max(0, len(example.ids) - max_length))
