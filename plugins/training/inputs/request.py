"""The request that starts a training job."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["TrainRequest"]


class TrainRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to train, stored with the job as `request.json` so that it can be resumed. Paths are absolute.

    `learning_rate_multiplier` multiplies the learning rate that is chosen for the run; one that is given stays.
    Data errors of the rules in `allow` do not stop the job. `force` publishes a version that fails a gate, which is
    recorded under the name of the `actor`.
    """

    adapter: str
    trainer: str
    base: str
    data: tuple[str, ...]
    validation: str | None = None
    parent: str | None = None
    alias: str | None = None
    device: str = "cpu"
    parameters: dict[str, Any] = {}
    learning_rate_multiplier: float = 1.0
    allow: tuple[str, ...] = ()
    force: bool = False
    actor: str = "unknown"
