"""A job's gates: what they are given to judge, what is recorded of their verdicts, and whether the
files may be published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from tunery.plugins.events import EventSink, GateAnswered
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.quantization import Quant
from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.gates.reference import record_reference
from tunery.plugins.training.gates.request import GateRequest, Precision, gate_entries
from tunery.plugins.training.gates.runner import run_gates
from tunery.plugins.training.gates.verdict import GateResult, check_gates
from tunery.plugins.training.inputs.read import Inputs
from tunery.registry.configuration.settings import read_settings
from tunery.registry.registry import Registry

__all__ = ["Gatekeeper"]

FEW, MANY = 8, 256
"""Rows whose log-probabilities are compared token by token, and held-out rows whose loss is compared."""
TOKENS = 256
"""Trained tokens that a comparison of log-probabilities should have: with a handful, the rounding
of one unlikely token decides."""


class Gatekeeper:
    """Runs one job's gates; does nothing when no gates are registered.

    `quant` and `dtype` are the trainer's precision; `supervised` says that it minimises the
    cross-entropy of the trained tokens.
    """

    def __init__(
        self,
        *,
        inputs: Inputs,
        registry: Registry,
        plugins: Plugins,
        folder: JobFolder,
        quant: Quant,
        dtype: torch.dtype,
        supervised: bool,
    ) -> None:
        self._inputs, self._registry, self._folder = inputs, registry, folder
        self._gates = gate_entries(plugins.gates())
        self._quant, self._dtype, self._supervised = quant, dtype, supervised
        # Read before training, so that a mistake in the settings shows at once.
        self._serve = read_settings(registry.home.root).serve

    @property
    def has_gates(self) -> bool:
        """Whether any gates are registered."""
        return bool(self._gates)

    def record(self, model: nn.Module) -> None:
        """Record the log-probabilities of a few rows under `model`, replacing those recorded before."""
        if self._gates:
            device = torch.device(self._inputs.request.device)
            record_reference(model, self._few(), self._folder.gates_reference, device=device, dtype=self._dtype)

    def run(
        self, output: Path, metrics: dict[str, float], parameters: TrainingParameters, on_event: EventSink
    ) -> dict[str, Any]:
        """Run the gates on the files in `output` and send each result as an event; return what the
        manifest records of them.

        `check` decides from that whether the files may be published.
        """
        if not self._gates:
            return {}
        results = run_gates(self._request(output, metrics, parameters), folder=self._folder.path)
        for result in results:
            on_event(msgspec.convert(msgspec.to_builtins(result), GateAnswered))
        record: dict[str, Any] = {"gates": [msgspec.to_builtins(result) for result in results]}
        request = self._inputs.request
        if request.force and any(result.failed for result in results):
            record |= {"forced": True, "forced_by": request.actor}
        return record

    def check(self, manifest: dict[str, Any], output: Path) -> None:
        """Raise GatesFailed when a gate in the manifest failed, unless publishing was forced."""
        if not manifest.get("forced"):
            check_gates(msgspec.convert(manifest.get("gates", []), list[GateResult]), output)

    def _request(self, output: Path, metrics: dict[str, float], parameters: TrainingParameters) -> GateRequest:
        base, corpus, request = self._inputs.base, self._inputs.corpus, self._inputs.request
        return GateRequest(
            gates=self._gates,
            adapter=request.adapter,
            folder=str(output),
            base_name=base.name,
            base_digest=base.digest,
            base_folder=base.path,
            packed=str(self._registry.home.packed),
            training=Precision(self._quant, "float32" if self._dtype == torch.float32 else "bfloat16"),
            serving=Precision(self._serve.quant, self._serve.dtype),
            device=request.device,
            held_out=_spread(corpus.held_out, MANY),
            trained=_spread(corpus.train, FEW),
            reference=str(self._folder.gates_reference),
            metrics=metrics,
            parameters=msgspec.to_builtins(parameters),
            supervised=self._supervised,
        )

    def _few(self) -> list[Example]:
        """Some held-out rows, and training rows too when those have too few trained tokens."""
        corpus = self._inputs.corpus
        rows = _spread(corpus.held_out, FEW)
        for row in _spread(corpus.train, MANY):
            if len(rows) >= FEW and sum(each.targets for each in rows) >= TOKENS:
                break
            rows.append(row)
        return rows


def _spread(rows: Sequence[Example], most: int) -> list[Example]:
    """At most `most` rows, evenly spaced."""
    if len(rows) <= most:
        return list(rows)
    return [rows[index * len(rows) // most] for index in range(most)]
