"""A process in which grammars are compiled for trial: `python -m tunery.gateway.engine.structured_output.trial`, started by Trials.

llguidance compiles in native code that nothing can interrupt, and its limits bound neither time nor memory: a schema of 100 bytes
can take minutes and gigabytes. So each grammar is first compiled in a child of this process, which has read the tokenizer and has
no threads; the kernel ends the child at its limits, and whoever does not want the answer any more kills it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import socket
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

import msgspec

from tunery.gateway.engine.messages import Constraint
from tunery.gateway.engine.structured_output.grammars import Grammars
from tunery.registry.errors import InvalidInput, TuneryError, Unavailable

__all__ = ["MEMORY", "SECONDS", "Trial", "TrialProcess", "TrialResult"]

SECONDS = 2
"""Processor time of one grammar."""
MEMORY = 128 * 2**20
"""Bytes of one grammar."""
NICENESS = 5

_NUMBER = struct.Struct("<Q")


class TrialResult(msgspec.Struct, frozen=True):
    """What a trial found: that the grammar takes `bytes` of memory, or the error of it (a code, and a message)."""

    bytes: int = 0
    code: str = ""
    message: str = ""


class Trial:
    """One grammar being tried. `result` waits for the verdict; `kill`, from any thread, ends the trial now."""

    def __init__(self, connection: socket.socket, request: bytes) -> None:
        self._connection = connection
        connection.sendall(_NUMBER.pack(len(request)) + request)
        self._pid = 0
        self._killed = False

    def result(self) -> int:
        """The bytes that the compiled grammar takes; raises InvalidInput where it cannot be compiled within the limits."""
        with self._connection:
            head = _exactly(self._connection, _NUMBER.size)
            if head is None:
                raise _not_running()
            self._pid = _NUMBER.unpack(head)[0]
            if self._killed:
                self.kill()
            answer = b""
            while piece := _received(self._connection):
                answer += piece
        self._pid = 0
        if not answer:
            raise InvalidInput(
                f"this grammar takes more than {SECONDS} s or {MEMORY // 2**20} MB to compile; simplify it",
                code="invalid_constraint",
            )
        verdict = msgspec.msgpack.decode(answer, type=TrialResult)
        if verdict.code:
            raise InvalidInput(verdict.message, code=verdict.code)
        return verdict.bytes

    def kill(self) -> None:
        """End it; `result` then raises."""
        self._killed = True
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


class TrialProcess:
    """Begins trials, in a process that is started with the first of them and again when it has ended."""

    def __init__(self, folder: Path, vocab_size: int, eos_ids: list[int]) -> None:
        self._command = [
            sys.executable,
            "-m",
            "tunery.gateway.engine.structured_output.trial",
            str(folder),
            str(vocab_size),
        ]
        self._command += map(str, eos_ids)
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._end: Callable[[], object] = lambda: None

    def begin(self, constraint: Constraint) -> Trial:
        """A trial of `constraint`."""
        try:
            request = msgspec.msgpack.encode(constraint)
        except UnicodeEncodeError as error:
            raise InvalidInput(f"this grammar cannot be read: {error}", code="invalid_constraint") from error
        for _ in range(2):
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    socket.send_fds(self._running(), [b"t"], [theirs.fileno()])
                return Trial(ours, request)
            except OSError:
                ours.close()
                self.close()
        raise _not_running()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._control = None
            self._end()

    def _running(self) -> socket.socket:
        with self._lock:
            if self._control is None:
                self._control, theirs = socket.socketpair()
                # Threads would not survive the forks.
                quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
                with theirs:
                    process = Popen(self._command, stdin=theirs.fileno(), env=os.environ | quiet)
                self._end = weakref.finalize(self, _end, process, self._control)
            return self._control


def _end(process: Popen[bytes], control: socket.socket) -> None:
    control.close()
    process.kill()
    process.wait()


def main() -> int:
    """Read the tokenizer, then fork a child for every connection that comes over stdin, until its other end is closed."""
    parser = argparse.ArgumentParser(prog="tunery-grammars")
    parser.add_argument("folder", type=Path)
    parser.add_argument("vocab_size", type=int)
    parser.add_argument("eos_ids", type=int, nargs="*")
    options = parser.parse_args()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel collects them
    grammars = Grammars(options.folder, options.vocab_size, options.eos_ids)
    with contextlib.suppress(TuneryError):
        grammars.compile(Constraint("json_object"))
    with socket.socket(fileno=os.dup(0)) as control:
        for connection in _connections(control):
            with connection:
                if os.fork() == 0:
                    _child(grammars, connection)
    return 0


def _not_running() -> Unavailable:
    return Unavailable("the process that compiles grammars does not run; try again, or see the engine's log")


def _connections(control: socket.socket) -> Iterator[socket.socket]:
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        yield socket.socket(fileno=descriptors[0])


def _child(grammars: Grammars, connection: socket.socket) -> None:
    """Try one grammar and end."""
    try:
        os.nice(NICENESS)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        size, resident = _memory()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        connection.sendall(_NUMBER.pack(os.getpid()))
        head = _exactly(connection, _NUMBER.size)
        body = _exactly(connection, _NUMBER.unpack(head)[0]) if head else None
        if body is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what an aborting child says is nobody's business
            verdict = _tried(grammars, msgspec.msgpack.decode(body, type=Constraint), resident)
            connection.sendall(msgspec.msgpack.encode(verdict))
    finally:
        os._exit(0)


def _tried(grammars: Grammars, constraint: Constraint, resident: int) -> TrialResult:
    try:
        grammars.compile(constraint)
    except TuneryError as error:
        return TrialResult(code=error.code, message=error.message)
    return TrialResult(bytes=max(0, _memory()[1] - resident))


def _memory() -> tuple[int, int]:
    """Bytes of address space and in memory; zeros where the system does not say."""
    try:
        size, resident = Path("/proc/self/statm").read_text().split()[:2]
    except OSError:
        return resource.RLIM_INFINITY - MEMORY, 0
    return int(size) * resource.getpagesize(), int(resident) * resource.getpagesize()


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    got = b""
    while len(got) < count:
        if not (piece := _received(connection, count - len(got))):
            return None
        got += piece
    return got


def _received(connection: socket.socket, most: int = 1 << 16) -> bytes:
    try:
        return connection.recv(most)
    except OSError:
        return b""


if __name__ == "__main__":
    raise SystemExit(main())
