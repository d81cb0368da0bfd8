"""The process that compiles grammars on trial: `python -m tunery.gateway.engine.structured_output.trial_process`.

llguidance compiles in native code that cannot be interrupted, and its limits bound neither time nor memory: a schema of
100 bytes can take minutes and gigabytes. So each grammar is first compiled in a child forked from this process, which
has read the tokenizer and has no threads. The kernel ends a child at its limits, and `Trial.kill` ends one that nobody
waits for.

A trial is a socket, received over stdin. The child sends its process id, reads one msgpack Constraint with its length
before it, and answers with a msgpack TrialResult, or with nothing when it met a limit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tunery.gateway.engine.sampling_params import Constraint
from tunery.gateway.engine.structured_output.grammars import Grammars
from tunery.registry.errors import TuneryError

__all__ = ["MAX_BYTES", "MAX_SECONDS", "NUMBER", "TrialResult", "main", "receive", "receive_exactly"]

MAX_SECONDS = 2
"""Processor time for one grammar."""
MAX_BYTES = 128 * 2**20
"""Memory for one grammar."""
NICENESS = 5

NUMBER = struct.Struct("<Q")
"""How process ids and lengths are sent."""


class TrialResult(msgspec.Struct, frozen=True):
    """The memory in bytes that the compiled grammar takes, or the code and message of the error."""

    bytes: int = 0
    code: str = ""
    message: str = ""


def main() -> int:
    """Read the tokenizer, then fork a child for every socket that comes over stdin, until its other end is closed."""
    parser = argparse.ArgumentParser(prog="tunery-grammars")
    parser.add_argument("folder", type=Path)
    parser.add_argument("vocab_size", type=int)
    parser.add_argument("eos_ids", type=int, nargs="*")
    options = parser.parse_args()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    grammars = Grammars(options.folder, options.vocab_size, options.eos_ids)
    with contextlib.suppress(TuneryError):
        grammars.compile(Constraint("json_object"))  # reads the tokenizer
    with socket.socket(fileno=os.dup(0)) as control:
        for connection in _connections(control):
            with connection:
                if os.fork() == 0:
                    _run_child(grammars, connection)
    return 0


def receive(connection: socket.socket, limit: int = 1 << 16) -> bytes:
    """At most `limit` bytes, empty at the end of the stream or when it broke."""
    try:
        return connection.recv(limit)
    except OSError:
        return b""


def receive_exactly(connection: socket.socket, count: int) -> bytes | None:
    """`count` bytes, or None when the stream ended before."""
    data = b""
    while len(data) < count:
        if not (piece := receive(connection, count - len(data))):
            return None
        data += piece
    return data


def _connections(control: socket.socket) -> Iterator[socket.socket]:
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        yield socket.socket(fileno=descriptors[0])


def _run_child(grammars: Grammars, connection: socket.socket) -> None:
    """Compile one grammar within the limits, then exit."""
    try:
        os.nice(NICENESS)
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        address_space, resident = _memory()
        resource.setrlimit(resource.RLIMIT_AS, (address_space + MAX_BYTES, address_space + MAX_BYTES))
        connection.sendall(NUMBER.pack(os.getpid()))
        head = receive_exactly(connection, NUMBER.size)
        body = receive_exactly(connection, NUMBER.unpack(head)[0]) if head else None
        if body is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a child that aborts prints a trace that helps nobody
            result = _compile(grammars, msgspec.msgpack.decode(body, type=Constraint), resident)
            connection.sendall(msgspec.msgpack.encode(result))
    finally:
        os._exit(0)


def _compile(grammars: Grammars, constraint: Constraint, resident: int) -> TrialResult:
    try:
        grammars.compile(constraint)
    except TuneryError as error:
        return TrialResult(code=error.code, message=error.message)
    return TrialResult(bytes=max(0, _memory()[1] - resident))


def _memory() -> tuple[int, int]:
    """Bytes of address space and of resident memory of this process; infinity and 0 where the system does not say."""
    try:
        address_space, resident = Path("/proc/self/statm").read_text().split()[:2]
    except OSError:
        return resource.RLIM_INFINITY - MAX_BYTES, 0
    return int(address_space) * resource.getpagesize(), int(resident) * resource.getpagesize()


if __name__ == "__main__":
    raise SystemExit(main())
