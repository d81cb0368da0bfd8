"""What the gates are asked to judge: the request that the job writes, and the case that each gate receives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from tunery.plugins.hookspecs import GateInfo
from tunery.plugins.quantization import Quant
from tunery.plugins.training.examples.batches import Example

__all__ = ["Gate", "GateCase", "GateRequest", "Precision", "gate_entries"]

T = TypeVar("T")


class Precision(msgspec.Struct, frozen=True):
    """How a base is quantized, and the dtype that it computes in."""

    quant: Quant
    dtype: Literal["float32", "bfloat16"]


class Gate(msgspec.Struct, frozen=True):
    """The parts of a GateInfo that the gates' process needs."""

    name: str
    code: str
    entrypoint: str


class GateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The files to judge, in `folder`, trained for `adapter` on a base.

    `training` is the precision of the base in training, `serving` that in `tunery serve`; `packed` is the folder of
    serving's packed bases. `held_out` and `trained` are some held-out and some training rows, `reference` is the file
    of the trainer's own log-probabilities (see `reference.py`; it may be missing). `metrics` and `parameters` are the
    run's; `supervised` says that it minimised the cross-entropy of the trained tokens.
    """

    gates: list[Gate]
    adapter: str
    folder: str
    base_name: str
    base_digest: str
    base_folder: str
    packed: str = ""
    training: Precision
    serving: Precision
    device: str = "cpu"
    held_out: list[Example] = []
    trained: list[Example] = []
    reference: str = ""
    metrics: dict[str, float] = {}
    parameters: dict[str, Any] = {}
    supervised: bool = True


class GateCase:
    """The request, and a cache of what several gates use, such as an engine with the base loaded."""

    def __init__(self, request: GateRequest) -> None:
        self.request = request
        self._made: dict[object, Any] = {}

    def once(self, key: object, make: Callable[[], T]) -> T:
        """The value of `make()`, called once per `key`."""
        if key not in self._made:
            self._made[key] = make()
        value: T = self._made[key]
        return value


def gate_entries(gates: Sequence[GateInfo]) -> list[Gate]:
    """Registered gates as entries of a request."""
    return [Gate(gate.name, gate.code, gate.entrypoint) for gate in gates]
