"""The lines that a server's processes write to stderr: text for people, or one JSON object an event for log collectors.

A line break or another control character in a message is escaped in both, so that nobody can forge a line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

__all__ = ["LogFormat", "LogLevel", "log_event", "notice", "set_up_logging"]

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class TextFormatter(logging.Formatter):
    """`LEVEL logger: message` on one line, and a traceback below."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """See logging.Formatter."""
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", super().formatMessage(record))


class JsonFormatter(logging.Formatter):
    """One JSON object: time, level, logger, message, and the traceback in `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        fields = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return _line(record.created, fields)


def set_up_logging(format: LogFormat, level: LogLevel) -> None:  # noqa: A002 - the setting's name
    """Log to stderr: what Tunery logs from `level` on, and warnings and errors of everything else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    own = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(own, logging.WARNING), handlers=[handler])
    logging.getLogger("tunery").setLevel(own)
    if format == "json":
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda failed: _log_uncaught(
            failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback
        )


def log_event(logger: str, fields: Mapping[str, Any]) -> None:
    """Write one event as a line of JSON, in either format."""
    sys.stderr.write(_line(datetime.now().timestamp(), {"level": "info", "logger": logger, **fields}) + "\n")
    sys.stderr.flush()


def notice(text: str) -> None:
    """Tell who started the process something, at any level: the text as it is, or as an event where events are JSON."""
    if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers):
        log_event("tunery", {"message": text})
    else:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt | SystemExit):
        logging.getLogger("tunery").critical("uncaught exception", exc_info=(kind, error, traceback))


def _line(seconds: float, fields: Mapping[str, Any]) -> str:
    time = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": time, **fields}, default=str)
