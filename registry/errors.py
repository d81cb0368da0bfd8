"""The one tree of errors. What HTTP status or exit code an error becomes is decided where it leaves the program.

    TuneryError
    ├── InvalidInput (ValueError)          the caller wrote something wrong
    │   ├── InvalidData                    rows of a training file, all bad lines together
    │   └── UnknownName                    no such parameter, trainer, base ...; the message lists near matches
    ├── NotFound (LookupError)             a well-formed name of something that does not exist
    ├── Conflict                           the state changed meanwhile (compare-and-set failed)
    ├── ArtifactRefused (ValueError)       weights or configs that must not enter or be served
    ├── StorageFailed (OSError)            disk full, blob missing or damaged
    │   └── StorageBusy                    another process holds the registry; try again a little later
    ├── TrainingFailed (ArithmeticError)   a run that cannot end well, or whose result must not be served
    ├── JobPaused                          a job wrote a checkpoint and ended, as requested
    ├── JobCancelled                       a command was interrupted, or a job stopped from elsewhere
    └── Unavailable                        the engine, or the Hub, cannot answer now
        └── Overloaded                     too many requests wait; try again a little later
            └── LimitReached               a tenant or a key has used what it may

Every message says what is wrong, which one, and what to do next.
"""

from __future__ import annotations

import difflib
import errno
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "error_of_kind",
    "ArtifactRefused",
    "Conflict",
    "InvalidData",
    "InvalidInput",
    "JobCancelled",
    "JobPaused",
    "LimitReached",
    "NotFound",
    "Overloaded",
    "StorageBusy",
    "StorageFailed",
    "TrainingFailed",
    "TuneryError",
    "Unavailable",
    "UnknownName",
    "disk_code",
    "is_full",
    "near",
    "near_or",
    "some_of",
]

_PROBLEMS = 20
"""Problems that the message of InvalidData shows."""
_NAME = 80
"""Characters that a message shows of a name that is not known."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TuneryError(Exception):
    """The base of every error Tunery raises on purpose.

    `code` is a stable machine-readable word; `param` names the offending field, where there is one.
    """

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param


class InvalidInput(TuneryError, ValueError):
    """The caller wrote something that is not valid."""

    code = "invalid_input"


class InvalidData(InvalidInput):
    """A training file has bad rows; `problems` holds one line of text per problem.

    The message shows the first 20 problems and counts the rest; `full_text` has them all. `advice` are the lines after.
    """

    code = "invalid_data"

    def __init__(
        self, message: str, *, problems: Sequence[str] = (), advice: Sequence[str] = (), code: str | None = None
    ) -> None:
        more = len(problems) - _PROBLEMS
        rest = [f"and {more} more"] if more > 0 else []
        super().__init__("\n".join([message, *problems[:_PROBLEMS], *rest, *advice]), code=code)
        self.problems = tuple(problems)
        self.full_text = "\n".join([message, *problems, *advice])


class UnknownName(InvalidInput):
    """A name that is not in a closed set; the message lists the near matches."""

    code = "unknown_name"

    def __init__(self, kind: str, name: str, known: Iterable[str], *, param: str | None = None) -> None:
        super().__init__(f"unknown {kind} {name[:_NAME]!r}: {near(name[:_NAME], known)}", param=param)
        self.kind, self.name = kind, name


class NotFound(TuneryError, LookupError):
    """A well-formed name of something that does not exist."""

    code = "not_found"


class Conflict(TuneryError):
    """The state changed since the caller read it; read it again and decide again."""

    code = "conflict"


class ArtifactRefused(TuneryError, ValueError):
    """Weights or configuration that must not be stored or served; `code` says why."""

    code = "artifact_refused"


class StorageFailed(TuneryError, OSError):
    """The disk cannot be read or written, or what is stored is missing or damaged."""

    code = "storage_failed"


class StorageBusy(StorageFailed):
    """Another process holds the registry's lock for longer than was waited; nothing was changed."""

    code = "registry_busy"
    retry_after = 1


class TrainingFailed(TuneryError, ArithmeticError):
    """A run that cannot end well, or whose result must not be served."""

    code = "training_failed"


class JobPaused(TuneryError):
    """A job wrote a checkpoint and ended, because it was asked to pause."""

    code = "job_paused"


class JobCancelled(TuneryError):
    """A command was interrupted, or a job was stopped from elsewhere."""

    code = "job_cancelled"


class Unavailable(TuneryError):
    """Something that is needed does not answer; trying again in `retry_after` seconds may help."""

    code = "unavailable"
    retry_after = 1


class Overloaded(Unavailable):
    """Too many requests are waiting already."""

    code = "overloaded"


class LimitReached(Overloaded):
    """A tenant or a key has used what it may, and may use more in `wait` seconds; None where waiting does not help.

    `limit` is the name of the limit; `headers` say how the others stand.
    """

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, limit: str, wait: float | None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.limit, self.wait = limit, wait
        self.retry_after = 1 if wait is None else max(1, math.ceil(wait))
        self.headers: dict[str, str] = {}


def error_of_kind(kind: str, message: str, *, code: str) -> TuneryError:
    """The error that another process has named by its class."""
    found: Any = globals().get(kind)
    if not (isinstance(found, type) and issubclass(found, TuneryError)):
        found = TuneryError
    while found.__init__ is not TuneryError.__init__:  # one that takes other arguments: its parent says enough
        found = found.__base__
    error: TuneryError = found(message, code=code)
    return error


def near(name: str, known: Iterable[str]) -> str:
    """Say which known names look like `name`, or list them all when none does."""
    names = sorted(set(known))
    if not names:
        return "none exist yet"
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(word) for word in close) + "?"
    return f"known: {some_of([repr(word) for word in names], 12)}"


def some_of(names: Sequence[str], most: int) -> str:
    """The first `most` names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def near_or(name: str, known: Iterable[str], otherwise: str) -> str:
    """As `near`, with what to do where none of the names is meant."""
    hint = near(name, known)
    return f"{hint} Or {otherwise}" if hint.endswith("?") else f"{hint}; or {otherwise}"


def disk_code(error: OSError) -> str:
    """The error code for what the operating system said of a disk: `disk_full` or `storage_failed`."""
    return "disk_full" if error.errno in _FULL else "storage_failed"


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that the disk is full.

    Libraries wrap what the disk said in errors of their own, so the text and the chain of causes are searched too.
    """
    while error is not None:
        full_text = any(os.strerror(code) in str(error) for code in _FULL)
        full_errno = isinstance(error, OSError) and error.errno in _FULL
        if full_errno or full_text or getattr(error, "code", None) == "disk_full":
            return True
        error = error.__cause__ or error.__context__
    return False
