"""`tunery` in processes that are forked from one that has imported torch, transformers and PEFT already.

Importing them takes seconds, many times as long as what most tests do. Each process is a real one all the same: it has its own pid,
environment, standard streams and exit code, and can be killed. What libraries read when they are imported (locale, OMP_NUM_THREADS, HF_ENDPOINT) is
the fork server's: a test about that starts a Python of its own.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

__all__ = ["TuneryProcess", "quick_jobs", "run_tunery", "start_tunery"]

FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["tests.fork_server_imports"])


class TuneryProcess:
    """A running `tunery`, with as much of subprocess.Popen's interface as tests need."""

    def __init__(self, process: ForkServerProcess, folder: Path) -> None:
        self._process, self._folder = process, folder
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        assert process.pid is not None
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; minus the number of the signal that killed it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Kill it, as SIGKILL does."""
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it wrote on stdout and stderr. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("tunery", timeout or 0.0, *map(str.encode, self._written()))
        return self._written()

    def _written(self) -> tuple[str, str]:
        out, error = ((self._folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        return out, error


def start_tunery(
    *words: str, environment: Mapping[str, str], prepare: Callable[[], None] | None = None
) -> TuneryProcess:
    """Start `tunery WORDS` with exactly these environment variables; the process calls `prepare`, a function of a module, first."""
    folder = Path(tempfile.mkdtemp(prefix="tunery-process-"))
    for name in ("stdout", "stderr"):
        (folder / name).touch()
    process = FORK_SERVER.Process(
        target=_main, args=(words, dict(environment), Path.cwd(), folder, prepare), daemon=False
    )
    process.start()
    return TuneryProcess(process, folder)


def run_tunery(
    *words: str, environment: Mapping[str, str], timeout: float = 600, forked: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `tunery WORDS` with exactly these environment variables to its end; in a Python of its own where `forked` is false."""
    if not forked:
        command = [sys.executable, "-m", "tunery.gateway.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    process = start_tunery(*words, environment=environment)
    try:
        out, error = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(["tunery", *words], process.returncode, out, error)


def quick_jobs() -> None:
    """Prepare a process whose jobs ask no gates and draw no picture, for tests of what is trained: both take longer than the tiny base."""
    from tunery.plugins import discovery
    from tunery.plugins.training.report import files

    discovery.load_plugins = partial(discovery.load_plugins, without=("gates",))
    files.draw = lambda *arguments, **options: "not drawn"  # type: ignore[attr-defined]


def _main(
    words: tuple[str, ...],
    environment: dict[str, str],
    cwd: Path,
    folder: Path,
    prepare: Callable[[], None] | None,
) -> None:
    """What the forked process does: become `tunery WORDS`, and end as Python ends."""
    import torch

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = ["tunery", *words]
    code = _call(words, prepare)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def _call(words: tuple[str, ...], prepare: Callable[[], None] | None) -> int:
    """Run the command; its exit code, or minus SIGINT's number when it was interrupted."""
    from tunery.gateway.cli import main

    try:
        if prepare is not None:
            prepare()
        main(words)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0
