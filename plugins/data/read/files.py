"""The files that a data path stands for, their size and their digest.

A path is a regular file, or a folder of Parquet or Arrow files of one split. Devices, pipes and ambiguous folders are
refused.
"""

from __future__ import annotations

import hashlib
import re
import stat
from pathlib import Path

from tunery.registry.errors import InvalidData, NotFound, some_of
from tunery.registry.storage.digest import file_digest

__all__ = ["data_digest", "data_files", "data_size"]

_TABLES = (".parquet", ".arrow")
_SHARD = re.compile(r"[-_.]?\d+(?:-of-\d+(?:-[0-9a-f]{8,})?)?$")
"""What distinguishes the shards of a split: a number, how many there are, and in older datasets a hash."""
_SHOWN = 5
"""Names that a message lists."""
_FIX = "write it to a file first"


def data_files(path: Path) -> list[Path]:
    """The regular files that hold the rows of a path, in order. Raises NotFound or InvalidData."""
    if str(path) == "-":
        raise InvalidData(f"standard input is not read; {_FIX}")
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"there is no file {path}; check --data and --val", code="file_not_found") from error
    except OSError as error:
        raise InvalidData(f"{path} cannot be read ({error.strerror})") from error
    if stat.S_ISDIR(mode):
        return _in_folder(path)
    if not stat.S_ISREG(mode):
        what = "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise InvalidData(f"{path} is {what}, and data is read more than once; {_FIX}")
    return [path]


def data_size(path: Path) -> int:
    """Size of a path's files in bytes, as stored."""
    return sum(file.stat().st_size for file in data_files(path))


def data_digest(path: Path) -> tuple[str, int]:
    """SHA-256 in hex and size in bytes.

    Of a file, its bytes'; of a folder, that of the names and digests of its data files.
    """
    files = data_files(path)
    if files == [path]:
        return file_digest(path)
    whole, size = hashlib.sha256(b"tunery data folder 1\n"), 0
    for file in files:
        sha256, length = file_digest(file)
        whole.update(f"{file.relative_to(path).as_posix()}\0{sha256}\n".encode())
        size += length
    return whole.hexdigest(), size


def _in_folder(path: Path) -> list[Path]:
    """The tables in a folder, or in its subfolder `data`."""
    if (path / "dataset_dict.json").is_file():
        splits = sorted(each.name for each in path.iterdir() if (each / "state.json").is_file())
        raise InvalidData(
            f"{path} holds the splits {some_of(splits, _SHOWN)}; name one of them, such as {path / splits[0]}"
        )
    files = [each for folder in (path, path / "data") for each in _tables(folder)]
    if not files:
        raise InvalidData(
            f"{path} is a folder without Parquet or Arrow files; name one file, such as {path / 'rows.jsonl'}"
        )
    if len({each.suffix for each in files}) > 1 or len({each.parent for each in files}) > 1:
        raise InvalidData(f"{path} holds tables of several kinds or in several folders; name the files one by one")
    if len(names := sorted({_SHARD.sub("", each.stem) for each in files})) > 1:
        raise InvalidData(
            f"{path} holds {', '.join(names[:_SHOWN])}, which may be different splits; name the files of one of them"
        )
    return files


def _tables(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # Datasets keeps what map() and filter() made in files that begin with cache-.
    files = (each for each in folder.iterdir() if each.suffix in _TABLES and not each.name.startswith((".", "cache-")))
    return sorted(each for each in files if each.is_file())
