"""The exit code of each kind of error."""

from __future__ import annotations

from tunery.registry.errors import (
    ArtifactRefused,
    Conflict,
    InvalidInput,
    JobCancelled,
    JobPaused,
    NotFound,
    StorageFailed,
    TrainingFailed,
    TuneryError,
    Unavailable,
)

__all__ = ["EXIT_CODES", "exit_code"]

EXIT_CODES: dict[type[TuneryError], int] = {
    InvalidInput: 2,
    NotFound: 3,
    Conflict: 4,
    ArtifactRefused: 5,
    Unavailable: 6,
    StorageFailed: 7,
    JobPaused: 8,
    TrainingFailed: 9,
    JobCancelled: 130,
}
"""2 is also what a mistyped command or option ends with; 1 is a bug; 130 is what shells call an interruption. 10:
reproduce found differences."""


def exit_code(error: TuneryError) -> int:
    """The exit code of an error."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
