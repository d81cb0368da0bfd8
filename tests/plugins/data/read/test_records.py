"""Rows are the same in whatever kind of file they come, and what is no file of rows is refused in one message."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.peak_memory import PEAK
from tunery.plugins.data.read import MAX_ROW, FileBroken, data_digest, data_size, iter_records, text_stream
from tunery.registry.errors import InvalidData, NotFound, TuneryError

ROWS = [{"prompt": f'Größe {n}, "of"\nit; {{[', "completion": f"世界 👩‍👩‍👧 {n}"} for n in range(3)]


def lines(rows: list[dict[str, Any]], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def as_csv(rows: list[dict[str, Any]], **how: Any) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), **how)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_parquet(rows: list[dict[str, Any]], **how: Any) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out, **how)
    return out.getvalue()


def as_arrow(rows: list[dict[str, Any]], new: Any = pa.ipc.new_stream) -> bytes:
    out = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with new(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(raw) for _, raw in iter_records(path)]


PRETTY = json.dumps(ROWS, indent=2)
KINDS = {
    "rows.jsonl": lines(ROWS).encode(),
    "crlf.jsonl": lines(ROWS, "\r\n").encode(),
    "cr.jsonl": lines(ROWS, "\r").encode(),
    "utf16.jsonl": lines(ROWS).encode("utf-16"),
    "utf16be.jsonl": b"\xfe\xff" + lines(ROWS).encode("utf-16-be"),
    "utf32.jsonl": lines(ROWS).encode("utf-32"),
    "rows.jsonl.gz": gzip.compress(lines(ROWS[:2]).encode()) + gzip.compress(lines(ROWS[2:]).encode()),
    "array.json": json.dumps(ROWS).encode(),
    "bom.json": json.dumps(ROWS).encode("utf-8-sig"),
    "pretty.json": PRETTY.encode(),
    "pretty16.json": PRETTY.replace("\n", "\r\n").encode("utf-16"),
    "pretty.json.gz": gzip.compress(PRETTY.encode()),
    "a row a line.json": ("[" + ",\n".join(json.dumps(row) for row in ROWS) + "]\n").encode(),
    "one after another.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    "glued.json": "".join(json.dumps(row) for row in ROWS).encode(),
    "rows.csv": as_csv(ROWS).encode(),
    "rows.tsv": as_csv(ROWS, delimiter="\t").encode(),
    "export.txt": as_csv(ROWS, delimiter=";").encode(),
    "excel.csv": as_csv(ROWS, delimiter=";").encode("utf-8-sig"),
    "excel16.csv": as_csv(ROWS, delimiter="\t").encode("utf-16"),
    "rows.csv.gz": gzip.compress(as_csv(ROWS).encode()),
    "rows.parquet": as_parquet(ROWS),
    "zstd.parquet": as_parquet(ROWS, compression="zstd", row_group_size=2),
    "stream.arrow": as_arrow(ROWS),
    "file.arrow": as_arrow(ROWS, pa.ipc.new_file),
}


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_the_same_in_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name])
    assert read(path) == ROWS
    assert data_size(path) == len(KINDS[name])
    assert data_digest(path)[1] == len(KINDS[name])


@pytest.mark.parametrize("name", ["array.json", "one after another.json", "rows.jsonl"])
@pytest.mark.parametrize("pad", [0, 70_000, 300_000])
def test_rows_longer_than_what_is_looked_at_are_read_whole(tmp_path: Path, name: str, pad: int) -> None:
    rows = [{"prompt": "p" * pad + "\\" * 3 + '"' + str(n), "completion": "[{" * pad} for n in range(4)]
    path = tmp_path / name
    path.write_text(
        {"array.json": json.dumps(rows), "rows.jsonl": lines(rows)}.get(name, "\n".join(json.dumps(row, indent=1) for row in rows))
    )  # fmt: skip
    assert read(path) == rows


def test_numbers_are_lines_where_there_are_lines_and_rows_elsewhere(tmp_path: Path) -> None:
    expected = {"rows.jsonl": [1, 2, 3], "pretty.json": [1, 2, 3], "rows.csv": [2, 4, 6], "rows.parquet": [1, 2, 3]}
    for name, numbers in expected.items():
        (tmp_path / name).write_bytes(KINDS[name])
        assert [number for number, _ in iter_records(tmp_path / name)] == numbers


def test_cells_that_are_empty_and_an_index_are_absent_and_json_in_cells_is_read(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = tmp_path / "rows.csv"
    path.write_text(as_csv([{"": 0, "messages": json.dumps(messages), "tools": "", "note": "[draft]"}]))
    assert read(path) == [{"messages": messages, "note": "[draft]"}]
    path.write_text("prompt,completion\n[1] what?,{x}\n\n[],{}\n")
    assert read(path) == [{"prompt": "[1] what?", "completion": "{x}"}, {"prompt": "[]", "completion": "{}"}]
    plain = {"instruction": "[]", "input": json.dumps({"a": 1}), "output": json.dumps([{"a": 1}])}
    path.write_text(as_csv([plain]))
    assert read(path) == [plain]
    openai = {"input": {"messages": messages[:1]}, "preferred_output": messages[1:], "tools": [{"type": "function"}]}
    path.write_text(as_csv([{name: json.dumps(value) for name, value in openai.items()}]))
    assert read(path) == [openai]


def test_fields_that_only_other_rows_of_a_table_have_are_absent(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}], "metadata": None},
        {"messages": [{"role": "user", "content": "q", "name": "jo"}, {"role": "assistant", "content": "a"}], "metadata": {"x": 1}},
    ]  # fmt: skip
    path = tmp_path / "rows.parquet"
    path.write_bytes(as_parquet(rows))
    del rows[0]["messages"][1]["content"], rows[0]["metadata"]
    assert read(path) == rows


def test_a_folder_of_shards_and_a_saved_dataset(tmp_path: Path) -> None:
    folder, saved = tmp_path / "repo", tmp_path / "saved"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("# rows")
    saved.mkdir()
    for number in range(2):
        part = ROWS[number * 2 : number * 2 + 2]
        (folder / "data" / f"train-0000{number}-of-00002.parquet").write_bytes(as_parquet(part))
        (saved / f"data-0000{number}-of-00002.arrow").write_bytes(as_arrow(part))
    (saved / "cache-1f.arrow").write_bytes(as_arrow(ROWS))
    (saved / "state.json").write_text("{}")
    for path in (folder, saved):
        assert [(number, json.loads(raw)) for number, raw in iter_records(path)] == list(enumerate(ROWS, start=1))
    before = data_digest(folder)
    (folder / "README.md").write_text("changed")
    assert data_digest(folder) == before
    (folder / "data" / "train-00001-of-00002.parquet").write_bytes(as_parquet(ROWS[:1]))
    assert data_digest(folder) != before


def test_folders_that_leave_a_choice_name_it(tmp_path: Path) -> None:
    both, splits, empty = tmp_path / "both", tmp_path / "dict", tmp_path / "empty"
    for folder in (both, splits / "train", splits / "test", empty):
        folder.mkdir(parents=True)
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        (both / f"{name}.parquet").write_bytes(as_parquet(ROWS))
    (splits / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for name in ("train", "test"):
        (splits / name / "state.json").write_text("{}")
    for folder, message in ((both, "test, train"), (splits, "splits test, train"), (empty, "without Parquet or Arrow")):
        with pytest.raises(InvalidData, match=message):
            read(folder)


BROKEN = {
    "cut.jsonl.gz": (gzip.compress(lines(ROWS * 50).encode())[:-20], "ends in the middle of what is gzipped"),
    "bad.jsonl.gz": (gzip.compress(b"x" * 99)[:10] + b"\xff" * 40, "damaged where it is gzipped"),
    "cut.json": (PRETTY[:-40].encode(), "row 3 is not complete where the file ends"),
    "open.json": (json.dumps(ROWS)[:-1].encode() + b"  ", "ends early|row 3 is not complete"),
    "bad.json": (PRETTY.replace('"completion"', "completion").encode(), "line 4: is not JSON at column 5"),
    "commas.json": (PRETTY.replace("},", "}").encode(), r"'\{' where ',' must stand"),
    "more.json": ((PRETTY + "\n{}").encode(), "goes on after its end"),
    "deep.json": (b"[" * 100_000, "row 1 is nested too deeply"),
    "long.json": (b'["' + b"x" * 3 * MAX_ROW + b'"]', "row 1 is longer than 4 MiB"),
    "ragged.csv": (b"prompt,completion\na,b\na,b,c\n", "line 3: has 3 cells where the header has 2"),
    "quotes.csv": (b'prompt,completion\na,"b\nc,d\n', "line 2: is not CSV"),
    "twice.csv": (b"prompt,prompt\na,b\n", "names prompt twice"),
    "latin.csv": ("prompt,completion\né,ü\n".encode("latin-1"), "is not UTF-8"),
    "half.jsonl": (lines(ROWS).encode("utf-16")[:-1], "begins as UTF-16 and is not"),
    "nomark.jsonl": (lines(ROWS).encode("utf-16-le"), "UTF-16 without a byte order mark"),
    "cut.parquet": (as_parquet(ROWS)[:-30], "damaged"),
    "cut.arrow": (as_arrow(ROWS)[:-200], "damaged"),
    "table.parquet.gz": (gzip.compress(as_parquet(ROWS)), "a table inside gzip"),
    "rows.xlsx": (b"PK\x03\x04" + b"\0" * 90, "an Excel workbook"),
    "rows.jsonl.zst": (b"\x28\xb5\x2f\xfd" + b"\0" * 90, "zstd -d"),
    "notes.md": (b"# Notes\n\nsome text\nmore of it\n" * 5000, "its lines are not JSON objects"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_error(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileBroken, match=message) as caught:
        read(path)
    assert caught.value.message.startswith(name)
    assert len(caught.value.message) < 400


def test_a_gzip_bomb_is_stopped_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_stream, "_UNCHECKED", 1 << 20)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * (8 << 20)))
    with pytest.raises(FileBroken, match="unpacks to more than 200 times"):
        sum(1 for _ in iter_records(path))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """Opening a pipe without a writer would wait for ever, and /dev/zero has no end."""
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    for path, message in ((pipe, "is a pipe"), (Path("/dev/zero"), "is a device"), (Path("-"), "standard input")):
        for use in (read, data_size, data_digest):
            with pytest.raises(InvalidData, match=message):
                use(path)
    with pytest.raises(NotFound):
        read(tmp_path / "none.jsonl")


@pytest.mark.slow
def test_memory_is_that_of_a_row_not_of_the_file(tmp_path: Path) -> None:
    """A window over an array of 64 MB, measured in a process of its own."""
    row = json.dumps({"prompt": "p" * 1000, "completion": "c" * 1000})
    path = tmp_path / "rows.json"
    with path.open("w") as file:
        file.write("[" + row)
        for _ in range(32_000):
            file.write(",\n" + row)
        file.write("]")
    code = PEAK + (
        "import sys; from tunery.plugins.data.read import iter_records\n"
        "before = peak()\n"
        "count = sum(1 for _ in iter_records(Path(sys.argv[1])))\n"
        "print(count, peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, kilobytes = map(int, done.stdout.split())
    assert count == 32_001
    assert kilobytes < 30_000


def test_without_pyarrow_the_extra_is_named_and_other_kinds_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rows.parquet", "rows.csv"):
        (tmp_path / name).write_bytes(KINDS[name])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TuneryError, match=r"tunery\[data\]"):
        read(tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.csv") == ROWS


DAMAGE = """
import pickle, random, sys
from pathlib import Path
from tunery.plugins.data.read import FileBroken, iter_records

kinds, path, chance = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]), random.Random(7)
read = broken = 0
for content in kinds * 12:
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(damaged))
        if chance.random() < 0.6:
            damaged[at] = chance.randrange(256)
        else:
            del damaged[at : at + chance.randint(1, 20)]
    path.write_bytes(damaged)
    try:
        read += sum(1 for _ in iter_records(path))
    except FileBroken:
        broken += 1
print(read, broken)
"""


def test_damage_anywhere_is_an_error_or_other_rows(tmp_path: Path) -> None:
    """In a process of its own, as a table that is followed beyond its end ends the process."""
    kinds = tmp_path / "kinds"
    kinds.write_bytes(pickle.dumps(list(KINDS.values())))
    code = [sys.executable, "-c", DAMAGE, str(kinds), str(tmp_path / "rows")]
    done = subprocess.run(code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows, broken = map(int, done.stdout.split())
    assert rows > 100
    assert broken > 100
