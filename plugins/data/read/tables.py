"""Read Parquet and Arrow, which need pyarrow (the extra `data`).

A row's number is its position in the table, from 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.data.read.json_columns import with_json_columns, without_nulls
from tunery.plugins.data.read.record import FileBroken, Record
from tunery.plugins.data.read.text_stream import check_expansion
from tunery.registry.errors import Unavailable

__all__ = ["read_arrow", "read_parquet"]

_ROWS = 32
"""Rows in memory at a time."""


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield every row of a Parquet file. Raises FileBroken where it is damaged, Unavailable without pyarrow."""
    _need_pyarrow(path)
    from pyarrow import parquet

    with (
        _reporting_damage(path),
        parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, memory_map=False) as file,
    ):
        groups = range(file.metadata.num_row_groups)
        check_expansion(path, sum(file.metadata.row_group(n).total_byte_size for n in groups), path.stat().st_size)
        yield from _records(file.iter_batches(batch_size=_ROWS, use_threads=False))


def read_arrow(path: Path) -> Iterator[Record]:
    """Yield every row of an Arrow file or stream.

    Raises FileBroken where it is damaged, Unavailable without pyarrow.
    """
    _need_pyarrow(path)
    import pyarrow

    with _reporting_damage(path), pyarrow.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            table = pyarrow.ipc.open_file(file)
            batches = (table.get_batch(number) for number in range(table.num_record_batches))
        else:
            file.seek(0)
            batches = iter(pyarrow.ipc.open_stream(file))
        yield from _records(_pieces(path, batches))


def _pieces(path: Path, batches: Iterator[Any]) -> Iterator[Any]:
    """Batches cut to a few rows each; uncompressed data stays in the file until it is used."""
    for batch in batches:
        check_expansion(path, batch.nbytes, path.stat().st_size)
        batch.validate(full=True)  # otherwise pyarrow would follow damaged offsets beyond the buffer
        yield from (batch.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))


def _records(batches: Iterator[Any]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, msgspec.json.encode(with_json_columns(without_nulls(row)), enc_hook=str) + b"\n"


@contextmanager
def _reporting_damage(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors into FileBroken."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = str(error).partition("\n")[0].replace(str(path), path.name)[:200]
        raise FileBroken(path, f"is damaged ({reason})", "copy it again") from error


def _need_pyarrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            f"{path.name} needs pyarrow to be read: pip install 'tunery[data]', or save it as JSON Lines",
            code="missing_extra",
        ) from error
