"""Owns a job's dealings with the gates: what they are shown, what is told and kept of their verdicts, and whether to publish."""

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
from tunery.plugins.training.gates.reference import record_reference
from tunery.plugins.training.gates.request import GateRequest, Precision, gate_entries
from tunery.plugins.training.gates.runner import run_gates
from tunery.plugins.training.gates.verdict import GateResult, check_gates
from tunery.plugins.training.inputs.read import Inputs
from tunery.registry.registry import Registry
from tunery.registry.settings import read_settings

__all__ = ["Gatekeeper"]

FEW, MANY = 8, 256
"""Rows whose log-probabilities are compared one by one, and held-out rows whose loss is."""
TOKENS = 256
"""Trained tokens that such a comparison should have: of a handful, rounding on one that nobody expected decides."""


class Gatekeeper:
    """One job's. Where no gates are registered it does nothing.

    `quant` and `dtype` are how the trainer holds its base and computes; `supervised` says that it minimises the loss of the
    trained tokens.
    """

    def __init__(
        self,
        *,
        inputs: Inputs,
        registry: Registry,
        plugins: Plugins,
        folder: Path,
        quant: Quant,
        dtype: torch.dtype,
        supervised: bool,
    ) -> None:
        self._inputs, self._registry, self._folder = inputs, registry, folder
        self._gates = gate_entries(plugins.gates())
        self._quant, self._dtype, self._supervised = quant, dtype, supervised
        # Read before anything is trained: a mistake in the settings shows at once.
        self._serve = read_settings(registry.home.root).serve
        self._reference = folder / "gates.reference.json"

    @property
    def has_gates(self) -> bool:
        """Whether anything is asked."""
        return bool(self._gates)

    def record(self, model: nn.Module) -> None:
        """Keep what `model` says of a few rows; called again, what it said before is forgotten."""
        if self._gates:
            device = torch.device(self._inputs.request.device)
            record_reference(model, self._few(), self._reference, device=device, dtype=self._dtype)

    def ask(
        self, output: Path, metrics: dict[str, float], parameters: TrainingParameters, on_event: EventSink
    ) -> dict[str, Any]:
        """Have the gates look at the files in `output`, and report each verdict; what the manifest is to say of them.

        `check` tells whether that allows publishing.
        """
        if not self._gates:
            return {}
        results = run_gates(self._request(output, metrics, parameters), folder=self._folder)
        for result in results:
            on_event(msgspec.convert(msgspec.to_builtins(result), GateAnswered))
        kept: dict[str, Any] = {"gates": [msgspec.to_builtins(result) for result in results]}
        request = self._inputs.request
        if request.force and any(result.failed for result in results):
            kept |= {"forced": True, "forced_by": request.actor}
        return kept

    def check(self, manifest: dict[str, Any], output: Path) -> None:
        """Raise GatesFailed where a gate in the manifest failed, unless that was overruled."""
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
            reference=str(self._reference),
            metrics=metrics,
            parameters=msgspec.to_builtins(parameters),
            supervised=self._supervised,
        )

    def _few(self) -> list[Example]:
        """Some held-out rows, and training rows where those say too little."""
        corpus = self._inputs.corpus
        rows = _spread(corpus.held_out, FEW)
        for row in _spread(corpus.train, MANY):
            if len(rows) >= FEW and sum(each.targets for each in rows) >= TOKENS:
                break
            rows.append(row)
        return rows


def _spread(rows: Sequence[Example], most: int) -> list[Example]:
    """At most so many of the rows, from all over them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[index * len(rows) // most] for index in range(most)]
