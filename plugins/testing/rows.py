"""Training rows that a tiny base learns in seconds: the answer to `item N` depends on whether N is even."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["write_pairs", "write_rows"]


def write_rows(path: Path, rows: int, *, start: int = 0) -> Path:
    """Write `rows` chat rows, items `start` and on, as JSON Lines; return the path."""
    with path.open("w") as file:
        for number in range(start, start + rows):
            messages = [
                {"role": "user", "content": f"item {number}"},
                {"role": "assistant", "content": _answer(number)},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def write_pairs(path: Path, rows: int, *, start: int = 0) -> Path:
    """Write the same questions as preference rows, in which the right answer is preferred to `who can say`; return the
    path."""
    with path.open("w") as file:
        for number in range(start, start + rows):
            row = {"prompt": f"item {number}", "chosen": _answer(number), "rejected": "who can say"}
            file.write(json.dumps(row) + "\n")
    return path


def _answer(number: int) -> str:
    return "even ticket" if number % 2 == 0 else "odd invoice refunds"
