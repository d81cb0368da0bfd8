"""`tunery`, and the processes that run gates and queued jobs, forked from a process that has imported torch, transformers and PEFT already.

Importing them takes seconds, many times as long as what most tests do. Each process is a real one all the same: it has
its own pid, environment, standard streams and exit code, and can be killed. What libraries read when they are imported
(locale, OMP_NUM_THREADS, HF_ENDPOINT) is the fork server's: a test about that starts a Python of its own.
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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import IO

from tunery.gateway import cli
from tunery.plugins.training.gates import process as gates_process
from tunery.plugins.training.queued import process as job_process

__all__ = ["FORKED_JOBS", "FORKED_SUBPROCESS", "ForkedProcess", "fork_jobs", "quick_jobs", "run_tunery", "start_tunery"]

FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["tests.fork_server_imports"])

Main = Callable[[Sequence[str]], int | None]


class ForkedProcess:
    """A running process, with as much of subprocess.Popen's interface as tests need.

    It calls `main(words)` with exactly these environment variables, once it has called `prepare`, a function of a
    module. Its stdout and stderr go to the two files.
    """

    def __init__(
        self,
        main: Main,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        outputs: tuple[Path, Path],
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._outputs = outputs
        self._process: ForkServerProcess = FORK_SERVER.Process(
            target=_run, args=(main, words, dict(environment), Path.cwd(), outputs, prepare)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; minus the number of the signal that killed it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end, as SIGTERM does."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it, as SIGKILL does."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it wrote on stdout and stderr. Raises subprocess.TimeoutExpired."""
        self.wait(timeout)
        out, error = (path.read_text(encoding="utf-8") for path in self._outputs)
        return out, error


class ForkedGates(ForkedProcess):
    """What takes subprocess.Popen's place where a job starts its gates."""

    def __init__(self, command: Sequence[str], *, stdout: IO[bytes], stderr: IO[bytes], env: Mapping[str, str]) -> None:
        assert command[1:3] == ["-m", gates_process.__name__]
        outputs = (Path(stdout.name), Path(stderr.name))
        super().__init__(gates_process.main, command[3:], environment=env, outputs=outputs)


FORKED_SUBPROCESS = SimpleNamespace(Popen=ForkedGates, TimeoutExpired=subprocess.TimeoutExpired)
"""What takes the place of the module `subprocess` in the module that starts gates."""


class ForkedJob(ForkedProcess):
    """What takes subprocess.Popen's place where the local executor starts a queued job."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        env: Mapping[str, str],
        start_new_session: bool,
    ) -> None:
        assert command[1:3] == ["-m", job_process.__name__]
        assert (stdin, start_new_session) == (subprocess.DEVNULL, True)
        outputs = (Path(stdout.name), Path(stderr.name))
        super().__init__(job_process.main, command[3:], environment=env, outputs=outputs, prepare=os.setsid)


FORKED_JOBS = SimpleNamespace(Popen=ForkedJob, DEVNULL=subprocess.DEVNULL)
"""What takes the place of the module `subprocess` in the module of the local executor."""


def start_tunery(
    *words: str, environment: Mapping[str, str], prepare: Callable[[], None] | None = None
) -> ForkedProcess:
    """Start `tunery WORDS` with exactly these environment variables; it calls `prepare`, a function of a module, first."""
    folder = Path(tempfile.mkdtemp(prefix="tunery-process-"))
    outputs = (folder / "stdout", folder / "stderr")
    for path in outputs:
        path.touch()
    process = ForkedProcess(cli.main, words, environment=environment, outputs=outputs, prepare=prepare)
    weakref.finalize(process, shutil.rmtree, folder, ignore_errors=True)
    return process


def run_tunery(
    *words: str, environment: Mapping[str, str], timeout: float = 600, forked: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `tunery WORDS` with exactly these environment variables to its end; not forked, in a Python of its own."""
    if not forked:
        command = [sys.executable, "-m", "tunery.gateway.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    process = start_tunery(*words, environment=environment)
    try:
        out, error = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(["tunery", *words], process.wait(), out, error)


def fork_gates() -> None:
    """Let jobs of this forked process fork their gates too, from the server that forked the process."""
    from multiprocessing import forkserver

    from tunery.plugins.training.gates import runner

    # Python would start another server here, though it has told this process how to reach its own.
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    vars(runner)["subprocess"] = FORKED_SUBPROCESS


def fork_jobs() -> None:
    """Prepare a process whose worker forks its jobs, from the server that forked the process."""
    from tunery.plugins.executors import local

    vars(local)["subprocess"] = FORKED_JOBS


def quick_jobs() -> None:
    """Prepare a process whose jobs ask no gates and draw no picture, for tests of what is trained: on the tiny base both
    take longer than that."""
    from tunery.plugins import discovery
    from tunery.plugins.training.report import files

    discovery.load_plugins = partial(discovery.load_plugins, without=("gates",))
    files.draw = lambda *arguments, **options: "not drawn"  # type: ignore[attr-defined]


def _run(
    main: Main,
    words: Sequence[str],
    environment: dict[str, str],
    cwd: Path,
    outputs: tuple[Path, Path],
    prepare: Callable[[], None] | None,
) -> None:
    """What the forked process does, to its end, which is Python's own end of a process."""
    import torch

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    for number, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = ["tunery", *words]
    code = _call(main, words, prepare)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def _call(main: Main, words: Sequence[str], prepare: Callable[[], None] | None) -> int:
    """The exit code of `main(words)`, or minus SIGINT's number when it was interrupted."""
    try:
        fork_gates()
        if prepare is not None:
            prepare()
        return main(words) or 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
