"""Check files of training data: every record through every check, in several processes where that pays.

Records are parsed, rendered and checked in chunks by whichever process is free, and compared here in the order of the
files. Nothing of a record is kept but its summaries and findings. Importing this module does not import torch.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tunery.plugins.data.checks.check import CheckContext
from tunery.plugins.data.checks.parsed_record import Location
from tunery.plugins.data.checks.report import DataReport
from tunery.plugins.data.checks.report_builder import FileKey, ReportBuilder
from tunery.plugins.data.checks.worker import CheckSetup, Chunk, RecordResult, Worker
from tunery.plugins.data.read import FileBroken, data_size, iter_records
from tunery.plugins.runtime.threads import available_cores
from tunery.registry.errors import Unavailable

if TYPE_CHECKING:
    from tunery.plugins.manager import Plugins

__all__ = ["CheckOptions", "check_data"]

_CHUNK_RECORDS, _CHUNK_BYTES = 500, 1 << 20
_POOL_MIN_BYTES = 2 << 20
"""Size of the files from which starting processes pays."""


class CheckOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How rows are checked: rendered with the base in `base_folder`, or not at all, and then the rules about tokens
    report nothing; `max_length` is in tokens.

    `format` names the rows' format; by default it is recognised. `processes` defaults to the usable cores.
    """

    max_length: int
    base_folder: Path | None = None
    format: str | None = None
    processes: int | None = None


def check_data(
    files: Sequence[Path], options: CheckOptions, *, plugins: Plugins, validation: Path | None = None
) -> DataReport:
    """Check files of rows, and the held-out file `validation` against them, with every registered check.

    Bad rows, and a file that cannot be read to its end, become findings. Raises NotFound or InvalidData for what is not
    a file of rows at all, and UnknownName for an unknown format.
    """
    formats = (plugins.format(options.format),) if options.format else tuple(plugins.formats().values())
    context = CheckContext(
        max_length=options.max_length,
        has_base=options.base_folder is not None,
        has_held_out=validation is not None,
    )
    setup = CheckSetup(formats, tuple(plugins.checks().values()), options.base_folder, context)
    paths = [*map(Path, files), *([Path(validation)] if validation else [])]
    held_out = [False] * len(files) + [True] * (validation is not None)
    keys = list(zip(_labels(paths), held_out, strict=True))
    broken: dict[FileKey, FileBroken] = {}
    builder = ReportBuilder(setup)
    chunks = _chunks(list(zip(keys, paths, strict=True)), broken)
    for result in _check_all(setup, chunks, _process_count(setup, paths, options.processes)):
        builder.add(result)
    return builder.build(keys, broken)


def _labels(paths: Sequence[Path]) -> list[str]:
    """What files are called in findings: their names, or their whole paths where two share a name."""
    names = [path.name or path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _chunks(files: Sequence[tuple[FileKey, Path]], broken: dict[FileKey, FileBroken]) -> Iterator[Chunk]:
    """The records of all files; files that cannot be read to their end are added to `broken`."""
    chunk: Chunk = []
    size = 0
    for (label, held_out), path in files:
        try:
            for number, raw in iter_records(path):
                chunk.append((Location(label, number, held_out), raw))
                size += len(raw)
                if len(chunk) >= _CHUNK_RECORDS or size >= _CHUNK_BYTES:
                    yield chunk
                    chunk, size = [], 0
        except FileBroken as error:
            broken[label, held_out] = error
    if chunk:
        yield chunk


def _process_count(setup: CheckSetup, paths: Sequence[Path], wanted: int | None) -> int:
    """Processes to check with.

    1, meaning this one, for small files, for plugins that cannot be pickled, and where this process may not start any.
    """
    number = wanted or available_cores()
    if number < 2 or current_process().daemon or sum(map(data_size, paths)) < _POOL_MIN_BYTES:
        return 1
    try:
        pickle.dumps(setup)
    except Exception:  # what pickle raises depends on what it is given
        return 1
    return number


def _check_all(setup: CheckSetup, chunks: Iterable[Chunk], processes: int) -> Iterator[RecordResult]:
    """The result of every record, in order."""
    if processes == 1:
        worker = Worker(setup)
        for chunk in chunks:
            yield from worker.check_chunk(chunk)
        return
    pending: deque[Future[list[RecordResult]]] = deque()
    try:
        # Spawned, because a process that has threads (torch, tokenizers) must not be forked.
        with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start, initargs=(setup,)) as pool:
            for chunk in chunks:
                pending.append(pool.submit(_check_chunk, chunk))
                if len(pending) > 3 * processes:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
    except BrokenProcessPool as error:
        raise Unavailable(
            "a process that checked data ended: it ran out of memory, or the script that started the check does its work "
            'without if __name__ == "__main__": around it; add that, or check with one process'
        ) from error


_worker: Worker | None = None
"""The worker of this process, where the process belongs to a pool."""


def _start(setup: CheckSetup) -> None:
    global _worker
    _worker = Worker(setup)


def _check_chunk(chunk: Chunk) -> list[RecordResult]:
    if _worker is None:
        raise RuntimeError("the process was not started by _start")
    return _worker.check_chunk(chunk)
