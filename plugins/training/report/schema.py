"""A training report as data, stored as `report.json`; importing it never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from tunery.plugins.training.report.findings import Change, Note, Outcome
from tunery.registry.losses import NATS

__all__ = ["General", "Outcomes", "Report", "Sample", "read_report"]


class Outcomes(msgspec.Struct, frozen=True):
    """Numbers of held-out rows whose answer became more likely, stayed as likely, and became less likely."""

    win: int = 0
    tie: int = 0
    loss: int = 0


class General(msgspec.Struct, frozen=True):
    """How the loss on the general set changed, and what that means."""

    change: Change
    verdict: Literal["kept", "forgot", "unclear"]


class Sample(msgspec.Struct, frozen=True):
    """A held-out prompt with its reference and both models' greedy answers; losses are the row's, in nats per token."""

    file: str
    line: int
    prompt: str
    reference: str
    base: str
    tuned: str
    before: float
    after: float
    outcome: Outcome


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report. Losses of rows are in nats per trained token, measured in `precision`; `curve` is (step,
    training loss) and `evaluations` (step, held-out loss), in `loss_unit`.

    `supervised` is False for a trainer with an objective of its own: curve and evaluations are then of that objective,
    and rows are compared with the model that training started from. `looked_at` of `rows` training rows were evaluated.
    `notes` say what is unknown, and why.
    """

    adapter: str
    base: str
    method: str
    chosen: int
    why: str
    rows: int
    looked_at: int
    supervised: bool = True
    loss_unit: str = NATS
    precision: str = ""
    held_out: Change | None = None
    outcomes: Outcomes = Outcomes()
    general: General | None = None
    training: Change | None = None
    hardest: list[Note] = []
    worse: list[Note] = []
    suspicious: list[Note] = []
    memorised: list[Note] = []
    counts: dict[str, int] = {}
    curve: list[tuple[int, float]] = []
    evaluations: list[tuple[int, float]] = []
    notes: list[str] = []


def read_report(path: Path) -> Report | None:
    """Read a stored report; None when the file is missing or was written by a Tunery whose reports differ."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError, RecursionError):
        return None
