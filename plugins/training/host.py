"""Owns starting, resuming and repeating training jobs; what happens in one is `run.py`.

The manifest is on disk before anything is trained. Whatever fails, the registry stays as it was and the job says why.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.data.renderer import Renderer
from tunery.plugins.data.tokens import read_json
from tunery.plugins.manager import Plugins, load_entrypoint
from tunery.plugins.parameters import TrainingParameters, given_names, read_parameters
from tunery.plugins.training.defaults import Facts, choose
from tunery.plugins.training.examples import Corpus, read_corpus
from tunery.plugins.training.manifest import IDENTITY, build_manifest, differences
from tunery.plugins.training.run import Run, TrainRequest
from tunery.registry import Base, Job, Version
from tunery.registry.digest import file_digest
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.names import check_adapter
from tunery.registry.registry import Registry

__all__ = ["Reproduction", "reproduce", "resume", "train"]

Report = Callable[[dict[str, Any]], None]

FALLBACK_WIDTH = 2048


def train(
    request: TrainRequest,
    parameters: TrainingParameters,
    *,
    registry: Registry,
    plugins: Plugins,
    report: Report,
) -> Version:
    """Train a version of `request.adapter` and publish it. `report` hears of every step, evaluation and ending.

    Parameters that `request.parameters` does not name (or names as "auto") are chosen from the data, the base and the method.
    """
    check_adapter(request.adapter)
    base = registry.base(request.base)
    _parent(request, registry, base)
    corpus = _corpus(request, parameters, base, plugins)
    facts = Facts(rows=len(corpus.train), held_out=len(corpus.held_out), hidden=_width(base))
    parameters, choices = choose(parameters, given_names(request.parameters), facts)
    job = registry.start_job(f"job-{uuid.uuid4().hex[:12]}", adapter=request.adapter, trainer=request.trainer)
    folder = registry.home.jobs / job.id
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _manifest(request, parameters, registry=registry, plugins=plugins, base=base, corpus=corpus, job=job)
    manifest["choices"] = [msgspec.to_builtins(choice) for choice in choices]
    (folder / "request.json").write_bytes(msgspec.json.encode(request))
    return _run(request, parameters, registry, plugins, base, corpus, job, manifest, report).publish()


def resume(job_id: str, *, registry: Registry, plugins: Plugins, report: Report) -> Version:
    """Go on with a job from its last checkpoint; refused, with what differs, when data or settings changed meanwhile."""
    job = registry.job(job_id)
    if job.state == "succeeded":
        raise InvalidInput(f"{job_id} has already succeeded: {job.adapter}@{job.version}")
    folder = registry.home.jobs / job_id
    if not (folder / "request.json").exists() or not (folder / "manifest.json").exists():
        raise NotFound(f"{job_id} kept nothing to resume from; start it anew")
    request = msgspec.json.decode((folder / "request.json").read_bytes(), type=TrainRequest)
    before = msgspec.json.decode((folder / "manifest.json").read_bytes())
    parameters = read_parameters(plugins.trainer(request.trainer).parameters, before["parameters"])
    base = registry.base(request.base)
    corpus = _corpus(request, parameters, base, plugins)
    now = _manifest(request, parameters, registry=registry, plugins=plugins, base=base, corpus=corpus, job=job)
    changed = differences(before, now)
    if changed:
        raise InvalidInput(
            f"{job_id} cannot go on as it began; put back what changed, or start a new job:\n" + "\n".join(changed),
            code="resume_mismatch",
        )
    return _run(request, parameters, registry, plugins, base, corpus, job, before, report).publish()


class Reproduction(msgspec.Struct, frozen=True, kw_only=True):
    """A version trained again: whether its digest came out the same, and a line for everything that may be why not."""

    version: str
    same: bool
    digest: str
    again: str
    differences: tuple[str, ...]


def reproduce(
    version: Version, *, data: Sequence[Path], registry: Registry, plugins: Plugins, report: Report
) -> Reproduction:
    """Train from a version's manifest and compare; `data` are files to use instead of those the job remembers.

    Every file must have the sha256 that the manifest names.
    """
    manifest = version.manifest
    if "parameters" not in manifest or "data" not in manifest:
        raise InvalidInput(f"{version.name} was not trained here, so it has no manifest to go by", code="no_manifest")
    request = _request_again(version, data, registry)
    parameters = read_parameters(plugins.trainer(request.trainer).parameters, manifest["parameters"])
    base = registry.base(version.base_digest)
    corpus = _corpus(request, parameters, base, plugins)
    job = registry.start_job(f"job-{uuid.uuid4().hex[:12]}", adapter=version.adapter, trainer=request.trainer)
    folder = registry.home.jobs / job.id
    folder.mkdir(parents=True, exist_ok=True)
    now = _manifest(request, parameters, registry=registry, plugins=plugins, base=base, corpus=corpus, job=job)
    # The quote decided how many rows go through the model at once, and sums depend on that.
    now |= {"quote": manifest["quote"], "repeats": version.name} if "quote" in manifest else {"repeats": version.name}
    again, files = _run(request, parameters, registry, plugins, base, corpus, job, now, report).repeat()
    changed = differences(manifest, now, names=(*IDENTITY, "packages", "hardware"))
    before = {entry.path: entry.sha256 for entry in version.files}
    changed += [f"file {entry.path}" for entry in files if before.get(entry.path) != entry.sha256]
    return Reproduction(
        version=version.name,
        same=again == version.digest,
        digest=version.digest,
        again=again,
        differences=tuple(changed),
    )


def _request_again(version: Version, data: Sequence[Path], registry: Registry) -> TrainRequest:
    """The request of a version's job, its files found by sha256 among `data` and where they were."""
    manifest = version.manifest
    path = registry.home.jobs / str(manifest.get("job")) / "request.json"
    kept = msgspec.json.decode(path.read_bytes(), type=TrainRequest) if path.exists() else None
    remembered = [*kept.data, *([kept.validation] if kept.validation else [])] if kept else []
    at: dict[str, str] = {}
    for candidate in (*map(str, data), *remembered):
        if Path(candidate).is_file():
            at.setdefault(file_digest(Path(candidate))[0], str(Path(candidate).absolute()))
    missing = [file for file in manifest["data"] if file["sha256"] not in at]
    if missing:
        names = "; ".join(f"{file['name']} (sha256 {file['sha256'][:12]}…)" for file in missing)
        raise NotFound(f"{version.name} was trained on {names}: name such a file with --data", code="file_not_found")
    files = [at[file["sha256"]] for file in manifest["data"]]
    validated = bool(manifest.get("validation"))
    parent = manifest.get("parent")
    return TrainRequest(
        adapter=version.adapter,
        trainer=manifest["trainer"],
        base=version.base_digest,
        data=tuple(files[:-1] if validated else files),
        validation=files[-1] if validated else None,
        parent=parent["version"] if parent else None,
        device=manifest.get("device", "cpu"),
        parameters=manifest["parameters"],
    )


def _run(
    request: TrainRequest,
    parameters: TrainingParameters,
    registry: Registry,
    plugins: Plugins,
    base: Base,
    corpus: Corpus,
    job: Job,
    manifest: dict[str, Any],
    report: Report,
) -> Run:
    return Run(
        request=request,
        parameters=parameters,
        registry=registry,
        plugins=plugins,
        trainer=load_entrypoint(plugins.trainer(request.trainer).entrypoint)(),
        base=base,
        parent=_parent(request, registry, base),
        corpus=corpus,
        job=job,
        folder=registry.home.jobs / job.id,
        manifest=manifest,
        report=report,
    )


def _corpus(request: TrainRequest, parameters: TrainingParameters, base: Base, plugins: Plugins) -> Corpus:
    corpus = read_corpus(
        [Path(path) for path in request.data],
        Path(request.validation) if request.validation else None,
        formats=plugins.formats(),
        renderer=Renderer(Path(base.path)),
        max_length=parameters.max_length,
        eval_fraction=parameters.eval_fraction,
        seed=parameters.seed,
    )
    if not corpus.train:
        raise InvalidInput("everything was held out and nothing is left to train on; lower eval_fraction")
    return corpus


def _manifest(
    request: TrainRequest,
    parameters: TrainingParameters,
    *,
    registry: Registry,
    plugins: Plugins,
    base: Base,
    corpus: Corpus,
    job: Job,
) -> dict[str, Any]:
    return build_manifest(
        job=job.id,
        trainer=request.trainer,
        plugin=plugins.owner_of_trainer(request.trainer),
        base=base,
        parent=_parent(request, registry, base),
        template=Renderer(Path(base.path)).template_sha256,
        corpus=corpus,
        parameters=parameters,
        choices=(),
        validation=request.validation is not None,
        device=request.device,
    )


def _parent(request: TrainRequest, registry: Registry, base: Base) -> Version | None:
    parent = registry.resolve(request.parent) if request.parent else None
    if parent is not None and parent.base_digest != base.digest:
        raise InvalidInput(
            f"{parent.name} was trained on {parent.base} ({parent.base_digest[:12]}), not on {base.name} "
            f"({base.digest[:12]}); continue on the same base",
            code="wrong_base",
        )
    return parent


def _width(base: Base) -> int:
    """Hidden units of the base; multimodal configurations keep them one level down."""
    config: Mapping[str, Any] = read_json(Path(base.path) / "config.json")
    inner = config.get("text_config") or {}
    return int(config.get("hidden_size") or inner.get("hidden_size") or FALLBACK_WIDTH)
