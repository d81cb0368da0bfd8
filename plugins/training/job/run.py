"""Owns one training job while it runs: preflight, base loss, steps, evaluation, files, publishing; the trainer only has the model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from torch import nn

from tunery.plugins.events import (
    Cancelled,
    CheckpointChosen,
    Evaluated,
    EventSink,
    Failed,
    JobEvent,
    Paused,
    PhasesTimed,
    Quoted,
    ReportWritten,
    Reproduced,
    Started,
    StepCompleted,
    Succeeded,
    encode_event,
)
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import Choice, TrainingParameters, step_count
from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.gates.gatekeeper import Gatekeeper
from tunery.plugins.training.inputs.read import Inputs, adapter_config
from tunery.plugins.training.job.control import Control, how_to_go_on, watch
from tunery.plugins.training.job.disk_errors import full_disk_told
from tunery.plugins.training.job.lock import exclusive
from tunery.plugins.training.job.manifest import fingerprint
from tunery.plugins.training.job.phases import Phases
from tunery.plugins.training.job.preflight import preflight
from tunery.plugins.training.job.quote import whole_quote
from tunery.plugins.training.loop.distributed import ProcessGroup
from tunery.plugins.training.loop.loop import Loop, TrainingResult
from tunery.plugins.training.objectives.objective import Objective, Supervised, objective_of, unit_of
from tunery.plugins.training.report.builder import ReportBuilder
from tunery.plugins.training.report.summary import summarize
from tunery.plugins.training.trainer import (
    LoadContext,
    SaveContext,
    Trainer,
    compute_dtype,
    dtype_name,
    load_base,
    load_trained,
    measuring_dtype,
)
from tunery.registry import Job, NewVersion, Version
from tunery.registry.errors import JobPaused
from tunery.registry.losses import NATS
from tunery.registry.records import FileEntry
from tunery.registry.registry import Registry
from tunery.registry.versions.publish import digest_of

__all__ = ["Run"]

T = TypeVar("T")

REFERENCE = "reference.json"
"""What an objective keeps of the untrained model."""


class Run:
    """One job."""

    def __init__(
        self,
        *,
        inputs: Inputs,
        parameters: TrainingParameters,
        registry: Registry,
        plugins: Plugins,
        trainer: Trainer,
        job: Job,
        folder: Path,
        manifest: dict[str, Any],
        on_event: EventSink,
        processes: ProcessGroup | None = None,
    ) -> None:
        self.request, self.base, self.parent, self.corpus = inputs.request, inputs.base, inputs.parent, inputs.corpus
        self.parameters, self.registry, self.plugins, self.trainer = parameters, registry, plugins, trainer
        self.job, self.folder, self.manifest, self._on_event = job, folder, manifest, on_event
        self.processes = processes or ProcessGroup()
        self.phases, self._at = Phases(), "before its first step"
        self.device = torch.device(self.processes.device or self.request.device)
        self.dtype = compute_dtype(parameters.precision, self.device)
        self.measured = measuring_dtype(trainer, adapter_config(registry, inputs.parent), self.dtype)
        self.objective: Objective = objective_of(trainer, parameters)
        precision = {"computed": dtype_name(self.dtype), "measured": dtype_name(self.measured)}
        self.manifest |= {"precision": precision, "loss_unit": unit_of(self.objective)}
        self.teller: ReportBuilder | None = ReportBuilder(
            inputs,
            parameters,
            folder=folder,
            supervised=not self.objective.relative,
            device=self.device,
            dtype=self.measured,
        )
        self.gatekeeper = Gatekeeper(
            inputs=inputs,
            registry=registry,
            plugins=plugins,
            folder=folder,
            quant=trainer.quant,
            dtype=self.measured,
            supervised=isinstance(self.objective, Supervised),
        )

    def publish(self) -> Version:
        """Train, and make the version visible."""
        return self._guarded(self._publish)

    def repeat(self) -> tuple[str, tuple[FileEntry, ...]]:
        """Train, and say what digest and files publishing would give; the registry stays as it is."""
        self.teller = None
        return self._guarded(self._digest)

    def _guarded(self, finish: Callable[[Path, dict[str, float], TrainingResult], T]) -> T:
        """Run, and leave the job in the state it ended in. One run at a time; of its processes the first one alone writes."""
        if not self.processes.is_main_process:
            self.control = Control()
            return self._finished(finish)
        with (
            exclusive(self.folder, self.job.id),
            watch(self.folder) as self.control,
            (self.folder / "metrics.jsonl").open("ab") as self.metrics_file,
        ):
            try:
                with full_disk_told(self.job.id):
                    self.registry.update_job(self.job.id, state="running")
                    self._write_manifest()
                    return self._finished(finish)
            except BaseException as error:
                self.control.end()
                self._ended_by(error)
                raise

    def _ended_by(self, error: BaseException) -> None:
        """Keep why the run ended. Whatever an interruption was turned into by what it landed in, a run that was told to stop was
        cancelled; raise KeyboardInterrupt saying so, and how to go on."""
        if self.registry.job(self.job.id).version is not None:
            return  # what came after a version was published takes nothing back
        if isinstance(error, JobPaused):
            self._end(Paused(error=str(error)))
        elif self.control.cancelled or isinstance(error, KeyboardInterrupt):
            self._end(Cancelled(error="asked to stop" if self.control.cancelled else "interrupted"))
            raise KeyboardInterrupt(
                how_to_go_on(self.job.id, self.folder, self._at, self.manifest.get("repeats"))
            ) from error
        else:
            code = getattr(error, "code", None)
            self._end(Failed(error=str(error), code=code if isinstance(code, str) else msgspec.UNSET))

    def _finished(self, finish: Callable[[Path, dict[str, float], TrainingResult], T]) -> T:
        trained = [self._train()]
        # Nobody keeps the model once it is saved: the gates' process needs the memory.
        return self.processes.on_main(lambda: finish(*self._save(*trained.pop())))

    def emit(self, event: JobEvent) -> None:
        """Send an event to the caller, the job's file, and every plugin that observes jobs."""
        if not self.processes.is_main_process:
            return
        if isinstance(event, StepCompleted | Evaluated) and self.manifest["loss_unit"] != NATS:
            event = msgspec.structs.replace(event, unit=self.manifest["loss_unit"])
        if isinstance(event, StepCompleted):
            self._at = f"after step {event.step} of {event.steps}"
        self.metrics_file.write(encode_event(event) + b"\n")
        self.metrics_file.flush()
        self._on_event(event)
        self.plugins.job_event(self.job, event)

    def _train(self) -> tuple[SaveContext[Any], nn.Module, TrainingResult]:
        """Everything up to the trained model, with what its trainer may use to save it, and what the run did."""
        corpus = self.corpus
        self.emit(
            Started(
                job=self.job.id,
                rows=len(corpus.train),
                held_out=len(corpus.held_out),
                tokens=sum(example.tokens for example in corpus.train),
                cut=corpus.cut,
                steps=step_count(self.parameters, len(corpus.train)),
                precision=dtype_name(self.dtype),
                measured_in=dtype_name(self.measured),
                choices=msgspec.convert(self.manifest["choices"], list[Choice]),
                data_check=self.manifest.get("data_check"),
            )
        )
        agree = self.processes.on_main
        base_loss = None if self.objective.relative else agree(lambda: self._base_loss(self._base))
        # Before the trainer makes its weights: the same seed gives the same adapter.
        torch.manual_seed(self.parameters.seed)
        context = LoadContext(
            base_folder=Path(self.base.path),
            parameters=self.parameters,
            device=self.device,
            dtype=self.measured,
            parent=agree(self._parent_folder),
        )
        with self.phases.of("loading"):
            model = self.processes.on_all(lambda: load_trained(self.trainer, context))
        # What the first process asks the model, the others read.
        agree(lambda: self._prepare(model))
        self._prepare(model)
        if self.objective.relative:
            base_loss = agree(lambda: self._base_loss(lambda: model))
        self._preflight(model)
        loop = Loop(
            model,
            corpus.train,
            self.parameters,
            device=self.device,
            dtype=self.dtype,
            checkpoint=self.folder / "checkpoint",
            fingerprint=fingerprint(self.manifest),
            on_event=self.emit,
            evaluate=self._shared_figures if corpus.held_out else None,
            objective=self.objective,
            control=self.control,
            processes=self.processes,
        )
        with self.phases.of("training"):
            done = loop.run()
        eval_loss = min((loss for _, loss in done.evaluations), default=None)
        if eval_loss is not None:
            self.emit(CheckpointChosen(step=done.chosen, why=done.why, eval_loss=eval_loss, base_loss=base_loss))
        saving = SaveContext(
            load=context,
            evaluate=(lambda tuned: self._figures(tuned)["loss"]) if corpus.held_out else None,
            base_loss=base_loss,
            eval_loss=eval_loss,
            record=self.gatekeeper.record,
        )
        return saving, model, done

    def _save(
        self, saving: SaveContext[Any], model: nn.Module, done: TrainingResult
    ) -> tuple[Path, dict[str, float], TrainingResult]:
        """The finished files: their folder, the metrics, and what the run did."""
        with self.phases.of("report"):
            self._tell(model, done)
        with self.phases.of("saving"):
            saving.record(model)
            output = self.folder / "output"
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir()
            own = self.trainer.save(model, output, saving)
        metrics = own | done.metrics
        if saving.base_loss is not None and saving.eval_loss is not None:
            metrics |= {"base_loss": saving.base_loss, "eval_loss": saving.eval_loss}
        base = {f"base_{name}": value for name, value in self.manifest.get("base_figures", {}).items()}
        return output, metrics | base, done

    def _tell(self, model: nn.Module, done: TrainingResult) -> None:
        """Write the report before anything can refuse the result: who has to mend it needs it most."""
        if self.teller is not None:
            report = self.teller.build(model, done, self.manifest)
            path = str(self.teller.folder / "report.md")
            self.emit(ReportWritten(path=path, lines=summarize(report, chosen=False)))

    def _prepare(self, model: nn.Module) -> None:
        """Let the objective ask the untrained model what it needs to know."""
        rows, path = (self.corpus.train, self.corpus.held_out), self.folder / REFERENCE
        self.objective.prepare(model, rows, path=path, device=self.device, dtype=self.measured)

    def _preflight(self, model: nn.Module) -> None:
        """Try the longest rows once per job; a resumed one keeps the micro-batch it began with."""
        if "quote" not in self.manifest:
            with self.phases.of("preflight"):
                quotes = self.processes.all_gather(
                    lambda: preflight(
                        model,
                        self.corpus.train,
                        self.parameters,
                        objective=self.objective,
                        device=self.device,
                        dtype=self.dtype,
                        processes=self.processes,
                    )
                )
            quote = whole_quote(
                min(quotes, key=lambda quote: quote.micro_batch_size),
                self.phases,
                corpus=self.corpus,
                parameters=self.parameters,
                trainer=self.trainer,
                report=self.teller is not None,
                gates=self.gatekeeper.has_gates,
            )
            self.manifest["quote"] = msgspec.to_builtins(quote)
            self.manifest["parameters"]["micro_batch_size"] = quote.micro_batch_size
            self._write_manifest()
            self.emit(msgspec.convert(self.manifest["quote"], Quoted))
        self.parameters = msgspec.structs.replace(
            self.parameters, micro_batch_size=self.manifest["parameters"]["micro_batch_size"]
        )

    def _times(self) -> None:
        """Tell and keep what each phase took."""
        self.manifest["phases"] = {name: round(seconds, 1) for name, seconds in self.phases.seconds.items()}
        quoted = self.manifest.get("quote", {}).get("minutes")
        self.emit(PhasesTimed(seconds=self.manifest["phases"], quoted_minutes=quoted))

    def _digest(
        self, output: Path, metrics: dict[str, float], done: TrainingResult
    ) -> tuple[str, tuple[FileEntry, ...]]:
        digest, files = digest_of(output, base=self.base)
        self.registry.update_job(self.job.id, state="succeeded")
        self._times()
        self.emit(Reproduced(digest=digest))
        self._clear()
        return digest, files

    def _publish(self, output: Path, metrics: dict[str, float], done: TrainingResult) -> Version:
        with self.phases.of("gates"):
            self.manifest |= self.gatekeeper.ask(output, metrics, self.parameters, self.emit)
        self._times()
        self._write_manifest()
        self.gatekeeper.check(self.manifest, output)
        chosen = {"step": done.chosen, "why": done.why, "evaluations": [list(e) for e in done.evaluations]}
        finished = self.manifest | {"steps": done.steps, "seconds": round(done.seconds, 1), "checkpoint": chosen}
        finished["finished_at"] = time.time()
        self.control.end()
        version = self.registry.publish(
            NewVersion(
                adapter=self.request.adapter,
                folder=output,
                base=self.base,
                method=self.request.trainer,
                manifest=finished,
                metrics=metrics,
                actor=self.request.actor,
                alias=self.request.alias,
                report=self.teller.folder if self.teller else None,
            )
        )
        self.registry.update_job(self.job.id, state="succeeded", version=version.number)
        self.manifest = finished
        self._write_manifest()
        self.emit(Succeeded(version=version.name, digest=version.digest))
        self.plugins.version_published(version, output)
        self._clear()
        return version

    def _clear(self) -> None:
        """Drop what only a running job needs."""
        for leftover in ("output", "checkpoint", "parent"):
            shutil.rmtree(self.folder / leftover, ignore_errors=True)
        for leftover in ("best.safetensors", "base.json", REFERENCE):
            (self.folder / leftover).unlink(missing_ok=True)

    def _base(self) -> nn.Module:
        """The base itself, on the quantization the trainer trains on."""
        with self.phases.of("loading"):
            return load_base(Path(self.base.path), quant=self.trainer.quant, dtype=self.measured, device=self.device)

    def _base_loss(self, load: Callable[[], nn.Module]) -> float | None:
        """The loss of the model to compare with on the held-out rows; it is loaded, once, where that is not yet known."""
        load = cache(load)
        if self.teller is not None:
            with self.phases.of("base questions"):
                self.teller.evaluate_base(load)
        if not self.corpus.held_out:
            return None
        if "base_loss" not in self.manifest:
            with self.phases.of("base loss"):
                self.manifest["base_figures"] = figures = self._figures(load())
            self.manifest["base_loss"] = figures.pop("loss")
            self._write_manifest()
        loss: float = self.manifest["base_loss"]
        self.emit(Evaluated(step=0, base_loss=loss, figures=self.manifest.get("base_figures", {})))
        return loss

    def _figures(self, model: nn.Module, rows: Sequence[Example] | None = None) -> dict[str, float]:
        """What the objective measures of the held-out rows, or of some of them."""
        return self.objective.evaluate(
            model,
            self.corpus.held_out if rows is None else rows,
            batch_size=self.parameters.micro_batch_size,
            device=self.device,
            dtype=self.measured,
        )

    def _shared_figures(self, model: nn.Module) -> dict[str, float]:
        """The same, each process looking at its share of the rows."""
        with self.phases.of("evaluation"):
            if self.processes.size == 1:
                return self._figures(model)
            share = self.processes.shard(self.corpus.held_out)
            return self.processes.weighted_mean(
                lambda: (self.objective.terms(share), self._figures(model, share)) if share else (0, {})
            )

    def _parent_folder(self) -> Path | None:
        if self.parent is None:
            return None
        folder = self.folder / "parent"
        if not folder.exists():
            self.registry.export(self.parent, folder)
        return folder

    def _write_manifest(self) -> None:
        if not self.processes.is_main_process:
            return
        staged = self.folder / "manifest.json.new"
        staged.write_bytes(msgspec.json.format(msgspec.json.encode(self.manifest), indent=2))
        staged.replace(self.folder / "manifest.json")

    def _end(self, event: Paused | Cancelled | Failed) -> None:
        # Where the disk is full this cannot be written either; why the run ended says more than that.
        with suppress(OSError):
            self.registry.update_job(self.job.id, state=event.kind, error=event.error)
        with suppress(OSError):
            self.emit(event)
