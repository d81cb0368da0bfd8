"""The process that `tunery.serve` starts: `python -m tunery.gateway.python.server_process SETTINGS`, settings as JSON.

It serves until its stdin is closed, which the end of the process that started it does too, and then drains. Stdout
carries one line of JSON: `{"ready": URL, "api_key": TOKEN}`, or `{"error": KIND, "message": …, "code": …}` when the start failed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import TextIO

import msgspec

from tunery.plugins.discovery import load_plugins
from tunery.plugins.runtime.log_format import notice
from tunery.plugins.runtime.quick_exit import exit_quickly
from tunery.registry.configuration.settings import ServeSettings, read_settings
from tunery.registry.errors import TuneryError
from tunery.registry.home import Home
from tunery.registry.keys.api_key import SCOPES, new_key

__all__ = ["main"]


def main() -> None:
    """Serve; exit with 1 after an error, which stdout has named."""
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed, by the engine's process too, is log
    threading.Thread(target=_stop_at_end_of_input, name="stdin", daemon=True).start()

    token = ""

    def say(text: str) -> None:
        notice(text)
        if text.startswith("ready: "):
            _send(messages, {"ready": text.split()[1], "api_key": token})

    try:
        from tunery.gateway.serve import run

        home, serving = Home.from_env(), msgspec.json.decode(sys.argv[1], type=ServeSettings)
        settings = msgspec.structs.replace(read_settings(home.root), serve=serving)
        key, token = new_key(
            tenant=settings.jobs.tenant, scopes=SCOPES, created_at=time.time(), created_by="tunery.serve"
        )
        run(settings, home=home, plugins=load_plugins(), say=say, own_key=key)
    except TuneryError as error:
        _send(messages, {"error": type(error).__name__, "message": error.message, "code": error.code})
        sys.exit(1)


def _stop_at_end_of_input() -> None:
    # Not sys.stdin, whose lock a waiting thread would still hold at the end of the process.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)  # no load balancer has to be told


def _send(stream: TextIO, message: dict[str, str]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


if __name__ == "__main__":
    exit_quickly()
    main()
