"""Read data files of every supported kind as numbered rows, each the bytes of one JSON object.

    for number, raw in iter_records(Path("tickets.parquet")):
        ...

A kind of file is JSON Lines, JSON (one array, or objects one after another), CSV and TSV, Parquet, Arrow, and folders of the last two as
Hugging Face datasets writes them. The texts among them may be gzipped, in UTF-16, and end their lines in CR. What kind a file is
follows from its content. Files are streamed; what the rows mean is the business of `formats`. Importing this imports no pyarrow.
"""

from __future__ import annotations

from tunery.plugins.data.read.files import data_digest, data_size
from tunery.plugins.data.read.record import MAX_ROW, FileBroken, Record
from tunery.plugins.data.read.records import iter_records

__all__ = ["MAX_ROW", "FileBroken", "Record", "data_digest", "data_size", "iter_records"]
