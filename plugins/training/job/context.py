"""Everything that the stages of one job share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch

from tunery.plugins.descriptors import load_entrypoint
from tunery.plugins.events import EventSink
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.gates.gatekeeper import Gatekeeper
from tunery.plugins.training.inputs.read import Inputs, adapter_config
from tunery.plugins.training.job.control import Control
from tunery.plugins.training.job.ledger import Ledger
from tunery.plugins.training.job.phases import Phases
from tunery.plugins.training.job.recorder import JobRecorder
from tunery.plugins.training.loop.compute import ComputeContext
from tunery.plugins.training.loop.distributed import ProcessGroup
from tunery.plugins.training.objectives.objective import Objective, Supervised, objective_of, unit_of
from tunery.plugins.training.report.builder import ReportBuilder
from tunery.plugins.training.trainer import Trainer, compute_dtype, dtype_name, measuring_dtype
from tunery.registry import Job
from tunery.registry.registry import Registry

__all__ = ["JobContext", "JobHost", "JobSetup", "make_context"]


class JobHost(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job runs: the registry it publishes to, the plugins, who hears of its events, the
    processes that train together, who records its state, and how many bytes it may use (None for what is free)."""

    registry: Registry
    plugins: Plugins
    on_event: EventSink
    processes: ProcessGroup
    ledger: Ledger
    memory_limit: int | None = None


class JobSetup(msgspec.Struct, frozen=True, kw_only=True):
    """A job that is ready to run, and what it was given."""

    host: JobHost
    job: Job
    inputs: Inputs
    parameters: TrainingParameters
    manifest: dict[str, Any]


class JobContext(msgspec.Struct, kw_only=True):
    """What the stages of a job use. `parameters` change once, when preflight settles the micro-batch size.

    `report` is None when no report is wanted.
    """

    setup: JobSetup
    parameters: TrainingParameters
    trainer: Trainer
    compute: ComputeContext
    objective: Objective
    folder: JobFolder
    recorder: JobRecorder
    gatekeeper: Gatekeeper
    report: ReportBuilder | None
    phases: Phases = msgspec.field(default_factory=Phases)
    control: Control = msgspec.field(default_factory=Control)

    @property
    def inputs(self) -> Inputs:
        """What the job was given."""
        return self.setup.inputs

    @property
    def manifest(self) -> dict[str, Any]:
        """The recorder's manifest."""
        return self.recorder.manifest

    @property
    def base_folder(self) -> Path:
        """The folder of the base."""
        return Path(self.inputs.base.path)

    def figures(self, model: torch.nn.Module) -> dict[str, float]:
        """What the objective measures of the held-out rows."""
        return self.objective.evaluate(
            model,
            self.inputs.corpus.held_out,
            batch_size=self.parameters.micro_batch_size,
            device=self.compute.device,
            dtype=self.compute.measured_dtype,
        )


def make_context(setup: JobSetup, *, report: bool) -> JobContext:
    """Build the trainer and everything around it; `report` says whether a report is wanted."""
    inputs, parameters, host = setup.inputs, setup.parameters, setup.host
    trainer: Trainer = load_entrypoint(host.plugins.trainer(inputs.request.trainer).entrypoint)()
    device = torch.device(host.processes.device or inputs.request.device)
    dtype = compute_dtype(parameters.precision, device)
    measured = measuring_dtype(trainer, adapter_config(host.registry, inputs.parent), dtype)
    compute = ComputeContext(
        device=device,
        dtype=dtype,
        measured_dtype=measured,
        processes=host.processes,
        memory_limit=host.memory_limit,
    )
    objective = objective_of(trainer, parameters)
    precision = {"computed": dtype_name(dtype), "measured": dtype_name(measured)}
    setup.manifest.update(precision=precision, loss_unit=unit_of(objective))
    folder = JobFolder(host.registry.home.jobs / setup.job.id)
    return JobContext(
        setup=setup,
        parameters=parameters,
        trainer=trainer,
        compute=compute,
        objective=objective,
        folder=folder,
        recorder=JobRecorder(
            setup.job,
            folder=folder,
            manifest=setup.manifest,
            ledger=host.ledger,
            plugins=host.plugins,
            on_event=host.on_event,
        ),
        gatekeeper=Gatekeeper(
            inputs=inputs,
            registry=host.registry,
            plugins=host.plugins,
            folder=folder,
            quant=trainer.quant,
            dtype=measured,
            supervised=isinstance(objective, Supervised),
        ),
        report=ReportBuilder(inputs, parameters, folder=folder, compute=compute, supervised=not objective.relative)
        if report
        else None,
    )
