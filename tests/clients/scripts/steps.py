"""What the scripts of frameworks share: the model, a question, the form of an answer, and running steps by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel

MODEL = os.environ["MODEL"]
QUESTION = "I was charged twice in March. Who can help?"
MESSAGES = [{"role": "user", "content": QUESTION}]
LIMIT = 16
"""Tokens of an answer of which nothing is expected."""
Team = Literal["billing", "support"]


class Ticket(BaseModel):
    """A customer's ticket."""

    team: Team
    urgent: bool


def run(*steps: Callable[[], object]) -> None:
    """Run steps, but for those that SKIP_STEPS names, and print the name of each that passes."""
    skipped = os.environ.get("SKIP_STEPS", "").split(",")
    for step in steps:
        if step.__name__ not in skipped:
            result = step()
            assert not inspect.iscoroutine(result), step
            print(f"{step.__name__}: ok")
