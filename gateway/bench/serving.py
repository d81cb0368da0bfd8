"""A real server to measure, and the gaps of a stream from it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunery.registry.errors import Unavailable

__all__ = ["COMMAND", "percentile", "post", "served_base", "server", "stream"]

STREAM = 400
"""Tokens of a stream whose gaps are timed."""
COMMAND = (sys.executable, "-m", "tunery.gateway.cli")


@contextmanager
def server(base: str, *, home: Path | None = None) -> Iterator[int]:
    """The port of `tunery serve` on that base, with a `home` of its own where one is given."""
    command = [*COMMAND, "serve", "--base", base, "--port", "0", "--no-auth"]
    environment = os.environ | ({"TUNERY_HOME": str(home)} if home else {})
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            for line in process.stderr or ():
                if line.startswith("ready: "):
                    yield int(line.split()[1].rpartition(":")[2])
                    return
            raise Unavailable(f"tunery serve ended with exit code {process.wait()}")
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def stream(port: int, base: str) -> list[float]:
    """Seconds between the events of one streamed completion."""
    asked = {"model": base, "prompt": "Once upon a time", "max_tokens": STREAM, "ignore_eos": True, "stream": True}
    connection = post(port, json.dumps(asked).encode())
    with contextlib.closing(connection):
        events = [(time.perf_counter(), line) for line in connection.getresponse() if line.startswith(b"data: {")]
    # An event has several tokens where they are one character, or where the reader was busy.
    last = json.loads(events[-1][1].removeprefix(b"data: ")) if events else {}
    finish = last["choices"][0]["finish_reason"] if "choices" in last else last.get("error")
    if finish != "length" or len(events) < 2:
        raise Unavailable(f"a stream of {STREAM} tokens ended after {len(events)} events, for the reason {finish}")
    return [after - before for (before, _), (after, _) in itertools.pairwise(events)]


def served_base(port: int) -> str:
    """The name of the base that a server serves."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/models")
        return str(json.load(connection.getresponse())["data"][0]["id"])


def post(port: int, body: bytes) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    return connection


def percentile(gaps: Sequence[float]) -> float:
    return sorted(gaps)[int(0.99 * len(gaps))]
