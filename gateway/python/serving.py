"""Start a gateway in a process of its own from Python, and stop it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

import msgspec

from tunery.gateway.python.home import find_home
from tunery.plugins.runtime.device import check_device
from tunery.registry.configuration.settings import ServeSettings, read_settings
from tunery.registry.errors import Unavailable, error_of_kind

__all__ = ["Server", "serve"]

GRACE_SECONDS = 30.0
"""What a server gets beyond `drain_seconds` to end in before it is killed."""


class Server:
    """A running gateway, as `serve` starts it.

    Leaving its `with` block stops it, and so does the end of this process.
    """

    url: str
    """Where it answers, such as `http://127.0.0.1:8000`; an OpenAI client's `base_url` is this and `/v1`."""
    api_key: str
    """A key with all scopes, which this server knows and no other, and which ends with it."""

    def __init__(self, process: subprocess.Popen[str], settings: ServeSettings, url: str, api_key: str) -> None:
        self.url, self.api_key = url, api_key
        self.settings = settings
        self._process = process

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Drain it: running requests have `drain_seconds` to finish.

        Returns when it has ended; calling it again does nothing.
        """
        _end(self._process, self.settings.drain_seconds + GRACE_SECONDS)


def serve(
    settings: ServeSettings | None = None,
    *,
    home: str | Path | None = None,
    log: str | Path | None = None,
    ready_seconds: float = 600.0,
) -> Server:
    """Serve every adapter of the registry from one quantized base, as `tunery serve` does, and return when it is ready.

    The server is a process of its own. Without `settings` it has those of `home/config.toml` and the environment;
    `port=0` takes any free port. Its log lines are added to the file `log`, or go where this process's stderr goes.

    Raises what made the start fail, for example UnknownName for an unknown base, and Unavailable where there is no
    server after `ready_seconds`, which includes the time that fetching and quantizing the base takes.
    """
    place = find_home(home)
    settings = settings or read_settings(place.root).serve
    check_device(settings.device)
    process = _start(settings, place.root, log)
    timer = threading.Timer(ready_seconds, process.kill)
    timer.start()
    try:
        url, api_key = _ready(process, ready_seconds)
        return Server(process, settings, url, api_key)
    except BaseException:
        _end(process, 0.0)
        raise
    finally:
        timer.cancel()


def _start(settings: ServeSettings, home: Path, log: str | Path | None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tunery.gateway.python.server_process", msgspec.json.encode(settings).decode()]
    stderr = None if log is None else Path(log).open("ab")  # noqa: SIM115 - closed below, when the process has it
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            env=os.environ | {"TUNERY_HOME": str(home)},
            # Interrupting a notebook's cell must not stop the server it started.
            start_new_session=True,
        )
    finally:
        if stderr is not None:
            stderr.close()


def _ready(process: subprocess.Popen[str], ready_seconds: float) -> tuple[str, str]:
    """What the process says first: its address and its key, or the error that it ended with."""
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        code = process.wait()
        why = f"took more than {ready_seconds:g} s" if code < 0 else f"ended with exit code {code}"
        raise Unavailable(f"the server {why} before it was ready; its log says more")
    message = json.loads(line)
    if "ready" in message:
        return message["ready"], message["api_key"]
    raise error_of_kind(message["error"], message["message"], code=message["code"])


def _end(process: subprocess.Popen[str], seconds: float) -> None:
    """Ask a process to end by closing its stdin, and kill it when it has not after `seconds`."""
    try:
        if process.stdin:
            process.stdin.close()
        process.wait(seconds)
    except (subprocess.TimeoutExpired, BrokenPipeError):
        process.kill()
        process.wait()
    finally:
        if process.stdout:
            process.stdout.close()
