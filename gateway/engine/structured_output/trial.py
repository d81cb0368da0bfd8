"""Trials: compiling a grammar in a child process with limits before the engine compiles it; see trial_process.py."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from subprocess import Popen

import msgspec

from tunery.gateway.engine.sampling_params import Constraint
from tunery.gateway.engine.structured_output.trial_process import (
    MAX_BYTES,
    MAX_SECONDS,
    NUMBER,
    TrialResult,
    receive,
    receive_exactly,
)
from tunery.registry.errors import InvalidInput, Unavailable

__all__ = ["Trial", "TrialProcess"]


class Trial:
    """One grammar that a child compiles.

    `result` waits for the outcome; `kill`, from any thread, ends the child now.
    """

    def __init__(self, connection: socket.socket, request: bytes) -> None:
        self._connection = connection
        connection.sendall(NUMBER.pack(len(request)) + request)
        self._pid = 0
        self._killed = False

    def result(self) -> int:
        """The memory in bytes that the compiled grammar takes.

        Raises InvalidInput (`invalid_constraint`) when it cannot be compiled, or not within the limits, and Unavailable
        when the trial process does not run.
        """
        with self._connection:
            head = receive_exactly(self._connection, NUMBER.size)
            if head is None:
                raise _not_running()
            self._pid = NUMBER.unpack(head)[0]
            if self._killed:
                self.kill()
            answer = b""
            while piece := receive(self._connection):
                answer += piece
        self._pid = 0
        if not answer:
            raise InvalidInput(
                f"this grammar takes more than {MAX_SECONDS} s or {MAX_BYTES // 2**20} MB to compile; simplify it",
                code="invalid_constraint",
            )
        result = msgspec.msgpack.decode(answer, type=TrialResult)
        if result.code:
            raise InvalidInput(result.message, code=result.code)
        return result.bytes

    def kill(self) -> None:
        """End the child; `result` then raises."""
        self._killed = True
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


class TrialProcess:
    """Begins trials in a process that is started for the first one, and again when it has ended.

    `folder` has the base's tokenizer.json, `vocab_size` is the width of the model's logits, `eos_ids` end an output.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_ids: Iterable[int]) -> None:
        module = "tunery.gateway.engine.structured_output.trial_process"
        self._command = [sys.executable, "-m", module, str(folder), str(vocab_size), *map(str, eos_ids)]
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._end: Callable[[], object] = lambda: None

    def begin(self, constraint: Constraint) -> Trial:
        """Start compiling `constraint`; raises InvalidInput when it cannot be sent, Unavailable
        when no process can be had."""
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
        """The control socket of the process, which is started if need be."""
        with self._lock:
            if self._control is None:
                self._control, theirs = socket.socketpair()
                # Threads would not survive the forks.
                single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
                with theirs:
                    process = Popen(self._command, stdin=theirs.fileno(), env=os.environ | single)
                self._end = weakref.finalize(self, _end, process, self._control)
            return self._control


def _end(process: Popen[bytes], control: socket.socket) -> None:
    control.close()
    process.kill()
    process.wait()


def _not_running() -> Unavailable:
    return Unavailable("the process that compiles grammars does not run; try again, or see the engine's log")
