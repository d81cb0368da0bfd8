"""The stages of a job, in order: prepare, preflight, train, report, save, gates, publish (or
compare, for a reproduction).

Each is a function of the job's context and what the stage before it returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from tunery.plugins.events import (
    CheckpointChosen,
    Evaluated,
    PhasesTimed,
    Quoted,
    ReportWritten,
    Reproduced,
    Started,
    Succeeded,
)
from tunery.plugins.parameters import Choice, step_count
from tunery.plugins.training.job.checkpoint_models import checkpoint_keeper
from tunery.plugins.training.job.context import JobContext
from tunery.plugins.training.job.manifest import fingerprint
from tunery.plugins.training.job.preflight import preflight
from tunery.plugins.training.job.quote import whole_quote
from tunery.plugins.training.loop.loop import Loop, LoopCallbacks, TrainingResult
from tunery.plugins.training.report.summary import summarize
from tunery.plugins.training.trainer import LoadContext, SaveContext, dtype_name, load_base, load_trained
from tunery.registry import NewVersion, Version
from tunery.registry.records import FileEntry
from tunery.registry.versions.publish import digest_of

__all__ = ["Prepared", "Saved", "Trained", "compare", "prepare", "publish", "save", "settle_micro_batch", "train"]


class Prepared(msgspec.Struct, frozen=True):
    """The model to train; `base_loss` is the held-out loss to improve on, None outside the main
    process or with nothing held out."""

    model: nn.Module
    load: LoadContext[Any]
    base_loss: float | None


class Trained(msgspec.Struct, frozen=True):
    """The trained model, how training went, and what the trainer may use to save the model."""

    model: nn.Module
    result: TrainingResult
    save: SaveContext[Any]


class Saved(msgspec.Struct, frozen=True):
    """The finished files, not yet published."""

    output: Path
    metrics: dict[str, float]
    result: TrainingResult


# -- prepare -----------------------------------------------------------------------------------------------------------


def prepare(job: JobContext) -> Prepared:
    """Evaluate the base, load the model to train, and let the objective evaluate it untrained."""
    _emit_started(job)
    on_main = job.compute.processes.on_main
    base_loss = None if job.objective.relative else on_main(lambda: _base_loss(job, lambda: _load_base(job)))
    # Before the trainer makes its weights: the same seed gives the same adapter.
    torch.manual_seed(job.parameters.seed)
    load = LoadContext(
        base_folder=job.base_folder,
        parameters=job.parameters,
        device=job.compute.device,
        dtype=job.compute.measured_dtype,
        parent=on_main(lambda: _parent_files(job)),
    )
    with job.phases.of("loading"):
        model = job.compute.processes.on_all(lambda: load_trained(job.trainer, load))
    # The main process computes what the objective needs of the untrained model; then all of them read it.
    on_main(lambda: _prepare_objective(job, model))
    _prepare_objective(job, model)
    if job.objective.relative:
        base_loss = on_main(lambda: _base_loss(job, lambda: model))
    return Prepared(model, load, base_loss)


def _emit_started(job: JobContext) -> None:
    corpus, compute = job.inputs.corpus, job.compute
    job.recorder.emit(
        Started(
            job=job.setup.job.id,
            rows=len(corpus.train),
            held_out=len(corpus.held_out),
            tokens=sum(example.tokens for example in corpus.train),
            cut=corpus.cut,
            steps=step_count(job.parameters, len(corpus.train)),
            precision=dtype_name(compute.dtype),
            measured_in=dtype_name(compute.measured_dtype),
            choices=msgspec.convert(job.manifest["choices"], list[Choice]),
            data_check=job.manifest.get("data_check"),
        )
    )


def _load_base(job: JobContext) -> nn.Module:
    """The base itself, quantized as the trainer trains on it."""
    with job.phases.of("loading"):
        return load_base(
            job.base_folder, quant=job.trainer.quant, dtype=job.compute.measured_dtype, device=job.compute.device
        )


def _base_loss(job: JobContext, load: Callable[[], nn.Module]) -> float | None:
    """The held-out loss of the model to compare with, which is loaded, once, only when an earlier
    run has not evaluated it."""
    load = cache(load)
    if job.report is not None:
        with job.phases.of("base questions"):
            job.report.evaluate_base(load)
    if not job.inputs.corpus.held_out:
        return None
    manifest = job.manifest
    if "base_loss" not in manifest:
        with job.phases.of("base loss"):
            manifest["base_figures"] = figures = job.figures(load())
        manifest["base_loss"] = figures.pop("loss")
        job.recorder.write_manifest()
    loss: float = manifest["base_loss"]
    job.recorder.emit(Evaluated(step=0, base_loss=loss, figures=manifest.get("base_figures", {})))
    return loss


def _parent_files(job: JobContext) -> Path | None:
    """The files of the version to continue from, exported once."""
    if job.inputs.parent is None:
        return None
    if not job.folder.parent.exists():
        job.setup.host.registry.export(job.inputs.parent, job.folder.parent)
    return job.folder.parent


def _prepare_objective(job: JobContext, model: nn.Module) -> None:
    corpus = job.inputs.corpus
    job.objective.prepare(
        model,
        (corpus.train, corpus.held_out),
        path=job.folder.objective_state,
        device=job.compute.device,
        dtype=job.compute.measured_dtype,
    )


# -- preflight ---------------------------------------------------------------------------------------------------------


def settle_micro_batch(job: JobContext, model: nn.Module) -> None:
    """Try the longest rows, once per job, and quote the run; a resumed job keeps the micro-batch
    size that it started with."""
    manifest = job.manifest
    if "quote" not in manifest:
        with job.phases.of("preflight"):
            quotes = job.compute.processes.all_gather(
                lambda: preflight(
                    model, job.inputs.corpus.train, job.parameters, objective=job.objective, compute=job.compute
                )
            )
        quote = whole_quote(
            min(quotes, key=lambda quote: quote.micro_batch_size),
            job.phases,
            corpus=job.inputs.corpus,
            parameters=job.parameters,
            trainer=job.trainer,
            report=job.report is not None,
            gates=job.gatekeeper.has_gates,
        )
        manifest["quote"] = msgspec.to_builtins(quote)
        manifest["parameters"]["micro_batch_size"] = quote.micro_batch_size
        job.recorder.write_manifest()
        job.recorder.emit(msgspec.convert(manifest["quote"], Quoted))
    size = manifest["parameters"]["micro_batch_size"]
    job.parameters = msgspec.structs.replace(job.parameters, micro_batch_size=size)


# -- train -------------------------------------------------------------------------------------------------------------


def train(job: JobContext, prepared: Prepared) -> Trained:
    """Run the training loop, from the last checkpoint when there is one."""
    corpus, base_loss = job.inputs.corpus, prepared.base_loss
    loop = Loop(
        prepared.model,
        corpus.train,
        job.parameters,
        compute=job.compute,
        objective=job.objective,
        folder=job.folder,
        fingerprint=fingerprint(job.manifest),
        callbacks=LoopCallbacks(
            on_event=job.recorder.emit,
            evaluate=(lambda model: _shared_figures(job, model)) if corpus.held_out else None,
            on_epoch=checkpoint_keeper(job, prepared.load),
            before_checkpoint=job.recorder.ledger.flush,
            should_pause=lambda: job.control.pausing,
        ),
    )
    with job.phases.of("training"):
        result = loop.run()
    eval_loss = min((loss for _, loss in result.evaluations), default=None)
    if eval_loss is not None:
        job.recorder.emit(
            CheckpointChosen(step=result.chosen, why=result.why, eval_loss=eval_loss, base_loss=base_loss)
        )
    saving = SaveContext(
        load=prepared.load,
        evaluate=(lambda model: job.figures(model)["loss"]) if corpus.held_out else None,
        base_loss=base_loss,
        eval_loss=eval_loss,
        record=job.gatekeeper.record,
    )
    return Trained(prepared.model, result, saving)


def _shared_figures(job: JobContext, model: nn.Module) -> dict[str, float]:
    """The figures of the held-out rows, each process evaluating its shard."""
    processes, compute = job.compute.processes, job.compute
    with job.phases.of("evaluation"):
        if processes.size == 1:
            return job.figures(model)
        shard = processes.shard(job.inputs.corpus.held_out)

        def own_figures() -> tuple[int, dict[str, float]]:
            if not shard:
                return 0, {}
            size = job.parameters.micro_batch_size
            return job.objective.terms(shard), job.objective.evaluate(
                model, shard, batch_size=size, device=compute.device, dtype=compute.measured_dtype
            )

        return processes.weighted_mean(own_figures)


# -- report and save ---------------------------------------------------------------------------------------------------


def save(job: JobContext, trained: Trained) -> Saved:
    """Write the report, then the finished files."""
    # The report comes before anything that can refuse the result: it is needed most when something has to be fixed.
    if job.report is not None:
        with job.phases.of("report"):
            report = job.report.build(trained.model, trained.result, job.manifest)
            path = str(job.folder.report / "report.md")
            job.recorder.emit(ReportWritten(path=path, lines=summarize(report, chosen=False)))
    with job.phases.of("saving"):
        trained.save.record(trained.model)
        output = job.folder.new_output()
        own_metrics = job.trainer.save(trained.model, output, trained.save)
    metrics = own_metrics | trained.result.metrics
    if trained.save.base_loss is not None and trained.save.eval_loss is not None:
        metrics |= {"base_loss": trained.save.base_loss, "eval_loss": trained.save.eval_loss}
    base_figures = {f"base_{name}": value for name, value in job.manifest.get("base_figures", {}).items()}
    return Saved(output, metrics | base_figures, trained.result)


# -- gates and publish -------------------------------------------------------------------------------------------------


def publish(job: JobContext, saved: Saved) -> Version:
    """Run the gates and publish the version; raise GatesFailed when one fails, unless publishing is forced."""
    _run_gates(job, saved)
    request, result = job.inputs.request, saved.result
    checkpoint = {"step": result.chosen, "why": result.why, "evaluations": [list(pair) for pair in result.evaluations]}
    finished = job.manifest | {"steps": result.steps, "seconds": round(result.seconds, 1), "checkpoint": checkpoint}
    finished["finished_at"] = time.time()
    job.control.end()
    new = NewVersion(
        adapter=request.adapter,
        folder=saved.output,
        base=job.inputs.base,
        method=request.trainer,
        manifest=finished,
        metrics=saved.metrics,
        actor=request.actor,
        alias=request.alias,
        report=job.folder.report if job.report is not None else None,
    )
    version = job.recorder.ledger.publish(new)
    job.recorder.manifest = finished
    job.recorder.write_manifest()
    job.recorder.emit(Succeeded(version=version.name, digest=version.digest))
    job.setup.host.plugins.version_published(version, saved.output)
    job.folder.clear()
    return version


def _run_gates(job: JobContext, saved: Saved) -> None:
    with job.phases.of("gates"):
        verdicts = job.gatekeeper.run(saved.output, saved.metrics, job.parameters, job.recorder.emit)
    job.manifest.update(verdicts)
    _emit_times(job)
    job.recorder.write_manifest()
    job.gatekeeper.check(job.manifest, saved.output)


def compare(job: JobContext, saved: Saved) -> tuple[str, tuple[FileEntry, ...]]:
    """The digest and files that publishing would give; the registry stays as it is."""
    digest, files = digest_of(saved.output, base=job.inputs.base)
    job.recorder.ledger.succeed()
    _emit_times(job)
    job.recorder.emit(Reproduced(digest=digest))
    job.folder.clear()
    return digest, files


def _emit_times(job: JobContext) -> None:
    """Record what each phase took."""
    seconds = {name: round(value, 1) for name, value in job.phases.seconds.items()}
    job.manifest["phases"] = seconds
    quoted = job.manifest.get("quote", {}).get("minutes")
    job.recorder.emit(PhasesTimed(seconds=seconds, quoted_minutes=quoted))
