"""Owns a training job from the files to the published version; the trainer only turns batches into weights.

The manifest is on disk before anything is trained. Whatever fails, the registry stays as it was and the job says why.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import time
import uuid
from collections.abc import Callable
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from tunery.plugins.data.renderer import Renderer
from tunery.plugins.manager import Plugins, load_entrypoint
from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.training.examples import Corpus, read_corpus
from tunery.plugins.training.loop import Fit, fit, step_count
from tunery.plugins.training.loss import mean_loss
from tunery.plugins.training.trainer import LoadContext, SaveContext, Trainer, load_base
from tunery.registry import Base, Job, Version
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.names import check_adapter
from tunery.registry.registry import Registry

__all__ = ["TrainRequest", "compute_dtype", "resume", "train"]

PACKAGES = ("tunery", "torch", "transformers", "peft", "accelerate", "bitsandbytes")

Report = Callable[[dict[str, Any]], None]


class TrainRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for; kept with the job so that it can be resumed. Paths are absolute."""

    adapter: str
    trainer: str
    base: str
    data: tuple[str, ...]
    validation: str | None = None
    parent: str | None = None
    alias: str | None = None
    device: str = "cpu"
    parameters: dict[str, Any] = {}
    actor: str = "unknown"


def train(
    request: TrainRequest,
    parameters: TrainingParameters,
    *,
    registry: Registry,
    plugins: Plugins,
    report: Report,
    job_id: str | None = None,
) -> Version:
    """Train a version of `request.adapter` and publish it. `report` hears of every step, evaluation and ending."""
    check_adapter(request.adapter)
    info = plugins.trainer(request.trainer)
    base = registry.base(request.base)
    parent = registry.resolve(request.parent) if request.parent else None
    _check_parent(parent, base)
    renderer = Renderer(Path(base.path))
    corpus = read_corpus(
        [Path(path) for path in request.data],
        Path(request.validation) if request.validation else None,
        formats=plugins.formats(),
        renderer=renderer,
        max_length=parameters.max_length,
        eval_fraction=parameters.eval_fraction,
        seed=parameters.seed,
    )
    if not corpus.train:
        raise InvalidInput("everything was held out and nothing is left to train on; lower eval_fraction")
    trainer: Trainer = load_entrypoint(info.entrypoint)()
    resumed = job_id is not None
    job = (
        registry.job(job_id)
        if job_id
        else registry.start_job(f"job-{uuid.uuid4().hex[:12]}", adapter=request.adapter, trainer=request.trainer)
    )
    folder = registry.home.jobs / job.id
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _manifest(request, parameters, base=base, parent=parent, renderer=renderer, corpus=corpus, job=job)
    run = _Run(request, parameters, registry, plugins, trainer, base, parent, corpus, job, folder, manifest, report)
    if resumed:
        registry.update_job(job.id, state="running")
    else:
        (folder / "request.json").write_bytes(msgspec.json.encode(request))
        (folder / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    return run.guarded()


def resume(job_id: str, *, registry: Registry, plugins: Plugins, report: Report) -> Version:
    """Go on with a job from its last checkpoint; refused when data or settings changed meanwhile."""
    from tunery.plugins.parameters import read_parameters

    job = registry.job(job_id)
    if job.state == "succeeded":
        raise InvalidInput(f"{job_id} has already succeeded: {job.adapter}@{job.version}")
    path = registry.home.jobs / job_id / "request.json"
    if not path.exists():
        raise NotFound(f"{job_id} kept nothing to resume from; start it anew")
    request = msgspec.json.decode(path.read_bytes(), type=TrainRequest)
    parameters = read_parameters(plugins.trainer(request.trainer).parameters, request.parameters)
    return train(request, parameters, registry=registry, plugins=plugins, report=report, job_id=job_id)


class _Run:
    """One job while it runs."""

    def __init__(
        self,
        request: TrainRequest,
        parameters: TrainingParameters,
        registry: Registry,
        plugins: Plugins,
        trainer: Trainer,
        base: Base,
        parent: Version | None,
        corpus: Corpus,
        job: Job,
        folder: Path,
        manifest: dict[str, Any],
        report: Report,
    ) -> None:
        self.request, self.parameters, self.registry, self.plugins = request, parameters, registry, plugins
        self.trainer, self.base, self.parent, self.corpus = trainer, base, parent, corpus
        self.job, self.folder, self.manifest, self._report = job, folder, manifest, report
        self.device = torch.device(request.device)
        self.dtype = compute_dtype(parameters.precision, self.device)
        self.metrics_file = (folder / "metrics.jsonl").open("ab")

    def guarded(self) -> Version:
        """Run, and leave the job in the state it ended in."""
        try:
            version = self._train()
        except KeyboardInterrupt:
            self._end("cancelled", "interrupted")
            raise
        except BaseException as error:
            self._end("failed", str(error))
            raise
        finally:
            self.metrics_file.close()
        return version

    def report(self, event: dict[str, Any]) -> None:
        """Tell the caller, the job's file, and every plugin that observes jobs."""
        if not self.metrics_file.closed:
            self.metrics_file.write(msgspec.json.encode(event) + b"\n")
            self.metrics_file.flush()
        self._report(event)
        self.plugins.job_event(self.job, event)

    def _train(self) -> Version:
        corpus, parameters = self.corpus, self.parameters
        self.report({
            "kind": "started", "job": self.job.id, "rows": len(corpus.train), "held_out": len(corpus.held_out),
            "tokens": sum(len(example.ids) for example in corpus.train), "cut": corpus.cut,
            "steps": step_count(parameters, len(corpus.train)),
            "precision": str(self.dtype).removeprefix("torch."),
        })  # fmt: skip
        base_loss = self._base_loss()
        # Before the trainer makes its weights: the same seed gives the same adapter.
        torch.manual_seed(parameters.seed)
        parent_folder = self._parent_folder()
        context = LoadContext(
            base_folder=Path(self.base.path),
            parameters=parameters,
            device=self.device,
            dtype=self.dtype,
            parent=parent_folder,
        )
        model = self.trainer.load(context)
        evaluate = self._evaluate if corpus.held_out else None
        done = fit(
            model,
            corpus.train,
            parameters,
            device=self.device,
            dtype=self.dtype,
            checkpoint=self.folder / "checkpoint",
            fingerprint=self._fingerprint(),
            report=self.report,
            evaluate=evaluate,
        )
        eval_loss = evaluate(model) if evaluate else None
        if eval_loss is not None:
            self.report({"kind": "evaluated", "step": done.steps, "eval_loss": eval_loss, "base_loss": base_loss})
        saving = SaveContext(load=context, evaluate=evaluate, base_loss=base_loss, eval_loss=eval_loss)
        return self._publish(model, saving, done)

    def _publish(self, model: nn.Module, saving: SaveContext[Any], done: Fit) -> Version:
        output = self.folder / "output"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        metrics = self.trainer.save(model, output, saving)
        metrics |= _metrics(done, saving)
        finished = self.manifest | {"finished_at": time.time(), "steps": done.steps, "seconds": round(done.seconds, 1)}
        version = self.registry.publish(
            self.request.adapter,
            output,
            base=self.base,
            method=self.request.trainer,
            manifest=finished,
            metrics=metrics,
            actor=self.request.actor,
            alias=self.request.alias,
        )
        self.registry.update_job(self.job.id, state="succeeded", version=version.number)
        self.report({"kind": "succeeded", "version": version.name, "digest": version.digest})
        self.plugins.version_published(version, output)
        for leftover in ("output", "checkpoint", "parent"):
            shutil.rmtree(self.folder / leftover, ignore_errors=True)
        return version

    def _base_loss(self) -> float | None:
        """The base's own loss on the held-out rows, on the quantization the trainer trains on."""
        if not self.corpus.held_out:
            return None
        model = load_base(Path(self.base.path), quant=self.trainer.quant, dtype=self.dtype, device=self.device)
        loss = self._evaluate(model)
        self.report({"kind": "evaluated", "step": 0, "base_loss": loss})
        return loss

    def _evaluate(self, model: nn.Module) -> float:
        return mean_loss(
            model,
            self.corpus.held_out,
            batch_size=self.parameters.micro_batch_size,
            device=self.device,
            dtype=self.dtype,
        )

    def _parent_folder(self) -> Path | None:
        if self.parent is None:
            return None
        folder = self.folder / "parent"
        if not folder.exists():
            self.registry.export(self.parent, folder)
        return folder

    def _fingerprint(self) -> str:
        """Identity of everything a checkpoint depends on."""
        manifest = self.manifest
        parts = {
            name: manifest[name] for name in ("base_digest", "data", "parameters", "parent", "template", "trainer")
        }
        return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()

    def _end(self, state: str, why: str) -> None:
        self.registry.update_job(self.job.id, state=state, error=why)
        self.report({"kind": state, "error": why})


def _manifest(
    request: TrainRequest,
    parameters: TrainingParameters,
    *,
    base: Base,
    parent: Version | None,
    renderer: Renderer,
    corpus: Corpus,
    job: Job,
) -> dict[str, Any]:
    """Where the version will have come from."""
    return {
        "job": job.id,
        "trainer": request.trainer,
        "base": base.name,
        "base_digest": base.digest,
        "parent": {"version": parent.name, "digest": parent.digest} if parent else None,
        "data": [msgspec.to_builtins(file) for file in corpus.files],
        "held_out": len(corpus.held_out),
        "template": renderer.template_sha256,
        "parameters": msgspec.to_builtins(parameters),
        "seed": parameters.seed,
        "packages": {name: package_version(name) for name in PACKAGES},
        "hardware": f"{platform.machine()} {request.device}, {torch.get_num_threads()} threads",
        "started_at": time.time(),
    }


def _metrics(done: Fit, saving: SaveContext[Any]) -> dict[str, float]:
    metrics: dict[str, float] = {
        "train_loss": done.train_loss,
        "steps": float(done.steps),
        "tokens": float(done.tokens),
    }
    metrics["useful_tok_s"] = round(done.tokens / max(done.seconds, 1e-9), 1)
    if saving.base_loss is not None and saving.eval_loss is not None:
        metrics |= {"base_loss": saving.base_loss, "eval_loss": saving.eval_loss}
    return metrics


def _check_parent(parent: Version | None, base: Base) -> None:
    if parent is not None and parent.base_digest != base.digest:
        raise InvalidInput(
            f"{parent.name} was trained on {parent.base} ({parent.base_digest[:12]}), not on {base.name} "
            f"({base.digest[:12]}); continue on the same base",
            code="wrong_base",
        )


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, unless the parameters say otherwise."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return (
        torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else torch.float32
    )
