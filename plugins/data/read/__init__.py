"""Read data files of every supported kind as numbered rows, each the bytes of one JSON object.

    for number, raw in iter_records(Path("tickets.parquet")):
        ...

Supported are JSON Lines, JSON (one array, or objects one after another), CSV and TSV, Parquet, Arrow, and folders of
the last two as Hugging Face datasets writes them. Text files may be gzipped, in UTF-16, and end their lines in CR. The
kind of a file is recognised from its content, and files are streamed. What the rows mean is decided in `formats`.
pyarrow is imported only where it is needed.
"""

from __future__ import annotations

from tunery.plugins.data.read.files import data_digest, data_size
from tunery.plugins.data.read.record import MAX_ROW, FileBroken, Record
from tunery.plugins.data.read.records import iter_records

__all__ = ["MAX_ROW", "FileBroken", "Record", "data_digest", "data_size", "iter_records"]
