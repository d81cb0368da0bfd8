"""From files of any kind to examples: the same ones, and each file known by the digest of what lies there."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.plugins.data.checks.check_rows import chat
from tunery.plugins.data.read import data_digest
from tunery.plugins.data.read.formats import BUILT_IN
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.training.examples.corpus import Corpus, read_corpus
from tunery.plugins.training.job.manifest import changed_files
from tunery.registry.errors import InvalidData
from tunery.registry.storage.digest import file_digest

ROWS = [chat(f"item {n}", f"It is {n}.") for n in range(6)]


def read(base: Path, *paths: Path) -> Corpus:
    formats = {info.name: info for info in BUILT_IN}
    return read_corpus(
        paths, None, TrainingParameters(max_length=64, eval_fraction=0.0), formats=formats, renderer=Renderer(base)
    )


def test_a_message_shows_the_first_problems_and_counts_the_rest(tmp_path: Path, tiny_base_folder: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(chat(f"item {n}", f"It is {n}.")) + "\n" for n in range(300)))
    formats = {info.name: info for info in BUILT_IN}
    with pytest.raises(InvalidData) as caught:
        read_corpus(
            [path],
            None,
            TrainingParameters(max_length=64, eval_fraction=0.0),
            formats=formats,
            renderer=Renderer(tiny_base_folder),
            preferences=True,
        )
    error = caught.value
    head, *shown, more = error.message.splitlines()
    assert head == "300 problems in the data; nothing was trained"
    assert [line.partition(": ")[0] for line in shown] == [f"rows.jsonl:{n}" for n in range(1, 21)]
    assert more == "and 280 more"
    assert len(error.problems) == 300
    assert error.full_text.splitlines() == [head, *error.problems]


def test_a_folder_of_tables_is_trained_on_as_its_rows_and_known_by_its_digest(
    tmp_path: Path, tiny_base_folder: Path
) -> None:
    lines, folder = tmp_path / "rows.jsonl", tmp_path / "rows"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    folder.mkdir()
    for number in range(2):
        table = pa.Table.from_pylist(ROWS[3 * number : 3 * number + 3])
        parquet.write_table(table, folder / f"train-0000{number}-of-00002.parquet")
    plain, tables = read(tiny_base_folder, lines), read(tiny_base_folder, folder)
    assert [example.ids for example in tables.train] == [example.ids for example in plain.train]
    assert [example.line for example in tables.train] == [1, 2, 3, 4, 5, 6]
    (file,), (known,) = plain.files, tables.files
    assert (file.sha256, file.size) == file_digest(lines)
    assert (known.name, known.sha256, known.size, known.rows) == ("rows", *data_digest(folder), 6)
    manifest = {"data": [{"name": known.name, "sha256": known.sha256}]}
    assert changed_files(manifest, [folder]) == []
    parquet.write_table(pa.Table.from_pylist(ROWS[:1]), folder / "train-00001-of-00002.parquet")
    assert [line.split(":")[0] for line in changed_files(manifest, [folder])] == ["data[0].sha256"]
