"""Owns checking files of training data: every line through every check, in several processes where that pays.

Lines are parsed, rendered and examined in chunks, wherever there is a process free; what is noted of them is gathered here in the order of
the files. Nothing of a line is kept but its notes and findings. Importing this imports no torch.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunery.plugins.data.checks.finding import KEPT, NOWHERE, Check, Context, DataReport, Fault, Finding
from tunery.plugins.data.checks.line import Line, Place
from tunery.plugins.data.read import FileBroken, data_size, iter_records
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.hookspecs import CheckInfo, FormatInfo, Severity
from tunery.plugins.manager import load_entrypoint
from tunery.plugins.runtime.threads import available_cores
from tunery.registry.errors import Unavailable

if TYPE_CHECKING:
    from tunery.plugins.manager import Plugins

__all__ = ["DataReport", "Finding", "check_data"]

_CHUNK_LINES, _CHUNK_BYTES = 500, 1 << 20
_WORTH_A_POOL = 2 << 20
"""Bytes from which starting processes pays."""

Chunk = list[tuple[Place, bytes]]


class _Work(msgspec.Struct, frozen=True):
    """What a process needs to examine lines; `checks` as registered, formats as they are tried."""

    formats: tuple[FormatInfo, ...]
    checks: tuple[CheckInfo, ...]
    base_folder: Path | None
    context: Context


class _Examined(msgspec.Struct, frozen=True):
    """What came of one line: faults by rule, notes by rule, and the format of the row, if it is one."""

    place: Place
    format: str | None
    faults: list[tuple[str, Fault]]
    notes: list[tuple[str, Any]]


def check_data(
    files: Sequence[Path],
    validation: Path | None,
    *,
    plugins: Plugins,
    base_folder: Path | None,
    max_length: int,
    processes: int | None = None,
    format: str | None = None,  # noqa: A002 - the word of the command line
) -> DataReport:
    """Check files of rows, and the held-out one against them, with every registered check.

    Without `base_folder` nothing is rendered and the rules about tokens are silent. `max_length` is in tokens. `processes` None takes
    the cores of this machine. `format` is the format's name where it is not to be recognised. Bad rows, and a file that cannot be
    read to its end, are findings; raise NotFound or InvalidData for what is no file of rows at all, UnknownName for a format that is none.
    """
    chosen = (plugins.format(format),) if format else tuple(plugins.formats().values())
    context = Context(max_length=max_length, has_base=base_folder is not None, has_validation=validation is not None)
    work = _Work(chosen, tuple(plugins.checks().values()), base_folder, context)
    paths = [*map(Path, files), *([Path(validation)] if validation else [])]
    labels = _labels(paths)
    held_out = [False] * len(files) + [True] * (validation is not None)
    gathering = _Gathering(work)
    broken: dict[tuple[str, bool], FileBroken] = {}
    chunks = _chunks(paths, labels, held_out, broken)
    for examined in _examine_all(work, chunks, _processes(work, paths, processes)):
        gathering.take(examined)
    return gathering.report(labels, held_out, broken)


class _Examiner:
    """Examines lines; one a process."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._checks = _load_checks(work)
        self._renderer = Renderer(work.base_folder) if work.base_folder else None

    def chunk(self, chunk: Chunk) -> list[_Examined]:
        """What is found in, and noted of, each line."""
        return [self._line(place, raw) for place, raw in chunk]

    def _line(self, place: Place, raw: bytes) -> _Examined:
        work = self._work
        line = Line(place, raw, formats=work.formats, renderer=self._renderer)
        faults: list[tuple[str, Fault]] = []
        notes: list[tuple[str, Any]] = []
        for rule, check in self._checks.items():
            try:
                faults += [(rule, fault) for fault in check.of_line(line)]
                if (note := check.note(line)) is not None:
                    notes.append((rule, note))
            except Exception as error:  # a third party's check may raise anything
                faults.append((rule, _broken(error)))
        return _Examined(place, line.row.format if line.row else None, faults, notes)


class _Gathering:
    """Hands notes to their checks in order and keeps what is found."""

    def __init__(self, work: _Work) -> None:
        self._severities = {info.name: info.severity for info in work.checks}
        self._checks = _load_checks(work)
        self._findings: list[Finding] = []
        self._counts: dict[str, dict[Severity, int]] = {}
        self._rows: dict[tuple[str, bool], tuple[int, str]] = {}

    def take(self, examined: _Examined) -> None:
        """Add one line."""
        place = examined.place
        for rule, fault in examined.faults:
            self._find(place.file, place.line, rule, fault)
        for rule, note in examined.notes:
            for fault in self._guarded(self._checks[rule].gather, place, note):
                self._find(place.file, place.line, rule, fault)
        if examined.format:
            count, first = self._rows.get((place.file, place.validation), (0, examined.format))
            self._rows[place.file, place.validation] = (count + 1, first)

    def report(
        self, labels: Sequence[str], held_out: Sequence[bool], broken: Mapping[tuple[str, bool], FileBroken]
    ) -> DataReport:
        """Everything, with what is only known at the end; `broken` are the files that could not be read whole."""
        statistics: dict[str, Any] = {"files": []}
        for label, validation in zip(labels, held_out, strict=True):
            rows, name = self._rows.get((label, validation), (0, None))
            statistics["files"].append({"file": label, "rows": rows, "format": name, "held_out": validation})
            if error := broken.get((label, validation)):
                message, _, fix = error.message.partition("; ")
                self._find(label, NOWHERE, "schema", Fault("$", message, fix, "error"))
            elif not rows:
                self._find(label, NOWHERE, "schema", Fault("$", "has no rows", "write one JSON object a line", "error"))
        for rule, check in self._checks.items():
            statistics |= check.statistics()
            for fault in self._guarded(check.of_whole):
                self._find(", ".join(labels), NOWHERE, rule, fault)
        return DataReport(self._findings, statistics, self._counts)

    def _find(self, file: str, line: int, rule: str, fault: Fault) -> None:
        severity = fault.severity or self._severities.get(rule, "error")
        counts = self._counts.setdefault(rule, {})
        counts[severity] = counts.get(severity, 0) + 1
        if counts[severity] > KEPT and line != NOWHERE:
            return
        self._findings.append(
            Finding(
                file=file,
                line=line,
                path=fault.path,
                rule=rule,
                severity=severity,
                message=fault.message,
                fix=fault.fix,
            )
        )

    @staticmethod
    def _guarded(call: Any, *arguments: Any) -> list[Fault]:
        try:
            return list(call(*arguments))
        except Exception as error:  # a third party's check may raise anything
            return [_broken(error)]


def _broken(error: Exception) -> Fault:
    return Fault("$", f"could not be checked: {type(error).__name__}: {error}", "mend or remove the check", "error")


def _load_checks(work: _Work) -> dict[str, Check]:
    return {info.name: load_entrypoint(info.entrypoint)(work.context) for info in work.checks}


def _labels(paths: Sequence[Path]) -> list[str]:
    """What files are called in findings: their names, or their whole paths where two have one name."""
    names = [path.name or path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _chunks(
    paths: Sequence[Path],
    labels: Sequence[str],
    held_out: Sequence[bool],
    broken: dict[tuple[str, bool], FileBroken],
) -> Iterator[Chunk]:
    """Rows of all files; files that end before their end go into `broken`."""
    chunk: Chunk = []
    size = 0
    for path, label, validation in zip(paths, labels, held_out, strict=True):
        try:
            for number, raw in iter_records(path):
                chunk.append((Place(label, number, validation), raw))
                size += len(raw)
                if len(chunk) >= _CHUNK_LINES or size >= _CHUNK_BYTES:
                    yield chunk
                    chunk, size = [], 0
        except FileBroken as error:
            broken[label, validation] = error
    if chunk:
        yield chunk


def _processes(work: _Work, paths: Sequence[Path], wanted: int | None) -> int:
    """How many processes to examine lines in; 1 is this one: for small files, formats that cannot be sent to another, and where this
    process may start none."""
    number = wanted or available_cores()
    if number < 2 or current_process().daemon or sum(map(data_size, paths)) < _WORTH_A_POOL:
        return 1
    try:
        pickle.dumps(work)
    except Exception:  # what pickle raises depends on what it is given
        return 1
    return number


def _examine_all(work: _Work, chunks: Iterable[Chunk], processes: int) -> Iterator[_Examined]:
    """Every line examined, in order."""
    if processes == 1:
        examiner = _Examiner(work)
        for chunk in chunks:
            yield from examiner.chunk(chunk)
        return
    waiting: deque[Future[list[_Examined]]] = deque()
    try:
        # Spawned, as a process that has threads (torch, tokenizers) must not be forked.
        with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start, initargs=(work,)) as pool:
            for chunk in chunks:
                waiting.append(pool.submit(_examine, chunk))
                if len(waiting) > 3 * processes:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise Unavailable(
            "a process that checked data was ended: for its memory, or because the script that asked for it does its work without "
            'if __name__ == "__main__": around it; add that, or check with one process'
        ) from error


_examiner: _Examiner | None = None
"""This process's own, in a process that only examines."""


def _start(work: _Work) -> None:
    global _examiner
    _examiner = _Examiner(work)


def _examine(chunk: Chunk) -> list[_Examined]:
    if _examiner is None:
        raise RuntimeError("the process was not started by _start")
    return _examiner.chunk(chunk)
