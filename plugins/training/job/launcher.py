"""Start, resume and reproduce training jobs. `run.py` and `stages.py` are what happens in one.

The manifest is on disk before anything is trained. Whatever fails, the registry stays as it was and
the job records why.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.data.read import data_digest
from tunery.plugins.data.render.tokenizer import read_json
from tunery.plugins.events import EventSink
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import Choice, TrainingParameters, given_names, read_parameters
from tunery.plugins.runtime.device import resolve_device
from tunery.plugins.training.defaults import Facts, choose
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.inputs.read import Inputs, adapter_config, read_inputs
from tunery.plugins.training.inputs.request import TrainRequest
from tunery.plugins.training.job.context import JobHost, JobSetup
from tunery.plugins.training.job.ledger import Ledger, OwnJob
from tunery.plugins.training.job.manifest import IDENTITY, build_manifest, changed_files, differences, rendered_at
from tunery.plugins.training.job.resume import ResumeOptions, conflicting_options
from tunery.plugins.training.job.run import publish_job, reproduce_job
from tunery.plugins.training.job.shortages import shortage_explained
from tunery.plugins.training.loop.distributed import ProcessGroup, connect_process_group
from tunery.registry import Job, Version
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.names import check_adapter
from tunery.registry.registry import Registry

__all__ = ["QueuedJob", "Reproduction", "reproduce", "resume", "train"]

FALLBACK_WIDTH = 2048


def train(
    request: TrainRequest,
    parameters: TrainingParameters,
    *,
    registry: Registry,
    plugins: Plugins,
    on_event: EventSink,
    queued: QueuedJob | None = None,
) -> Version:
    """Train a version of `request.adapter` and publish it. `on_event` is given every event of the job.

    Parameters that `request.parameters` does not name (or names as "auto") are chosen from the
    data, the base and the method. `queued` is the job where there is one already.
    """
    check_adapter(request.adapter)
    resolve_device(request.device)
    processes = connect_process_group(request.device)
    # One time for all processes: a chat template may print it.
    template_time = processes.on_main(datetime.now).replace(microsecond=0)
    inputs = processes.on_all(
        lambda: read_inputs(
            request, parameters, registry=registry, plugins=plugins, check=processes.is_main_process, now=template_time
        )
    )
    facts = Facts(
        rows=len(inputs.corpus.train), held_out=len(inputs.corpus.held_out), hidden=_width(Path(inputs.base.path))
    )
    given = given_names(request.parameters)
    parameters, choices = choose(parameters, given, facts, multiplier=request.learning_rate_multiplier)
    if (parent := adapter_config(registry, inputs.parent)) is not None:
        parameters = parameters.continuing(parent, given)

    def start() -> tuple[Job, dict[str, Any]]:
        job = queued.job if queued else _start(request, registry)
        with shortage_explained(job.id):
            _folder(registry, job.id).path.mkdir(parents=True, exist_ok=True)
            _folder(registry, job.id).request.write_bytes(msgspec.json.encode(request))
        return job, _manifest(inputs, parameters, choices, plugins=plugins, job=job, processes=processes)

    job, manifest = processes.on_main(start)
    host = _host(registry, plugins, on_event, processes, queued or _own(registry, job))
    setup = JobSetup(host=host, job=job, inputs=inputs, parameters=parameters, manifest=manifest)
    return publish_job(setup)


def resume(
    job_id: str,
    *,
    registry: Registry,
    plugins: Plugins,
    on_event: EventSink,
    forced_by: str | None = None,
    options: ResumeOptions | None = None,
    queued: QueuedJob | None = None,
) -> Version:
    """Resume a job from its last checkpoint and publish its version.

    Raise InvalidInput `resume_mismatch`, with a line for every difference, when data or settings changed since the job
    began, or when `options` differ from the job's. A version that fails a gate is published when `forced_by` names who
    wants that.
    """
    job = registry.job(job_id)
    if job.state == "succeeded":
        raise InvalidInput(f"{job_id} has already succeeded: {job.adapter}@{job.version}")
    folder = _folder(registry, job_id)
    if not folder.request.exists() or not folder.manifest.exists():
        raise NotFound(f"{job_id} stored nothing to resume from; start a new job")
    request = msgspec.json.decode(folder.request.read_bytes(), type=TrainRequest)
    if forced_by is not None:
        request = msgspec.structs.replace(request, force=True, actor=forced_by)
    before = folder.read_manifest()
    kind = plugins.trainer(request.trainer).parameters
    if options is not None and (lines := conflicting_options(options, request, before, kind, registry)):
        raise InvalidInput(
            f"{job_id} goes on as it began; leave out what differs, or start a new job without --resume:\n"
            + "\n".join(lines),
            code="resume_mismatch",
        )
    resolve_device(request.device)
    if before.get("parent"):  # the requested alias may point at another version by now
        request = msgspec.structs.replace(request, parent=before["parent"]["version"])
    # Before rows are read: a file that was cut short counts as changed, whatever else is wrong with it.
    _refuse(job_id, changed_files(before, [Path(path) for path in (*request.data, request.validation) if path]))
    parameters = read_parameters(kind, before["parameters"])
    processes = connect_process_group(request.device)
    inputs = processes.on_all(
        lambda: read_inputs(request, parameters, registry=registry, plugins=plugins, now=rendered_at(before))
    )
    _refuse(
        job_id, differences(before, _manifest(inputs, parameters, (), plugins=plugins, job=job, processes=processes))
    )
    host = _host(registry, plugins, on_event, processes, queued or _own(registry, job))
    setup = JobSetup(host=host, job=job, inputs=inputs, parameters=parameters, manifest=before)
    return publish_job(setup)


def _refuse(job_id: str, changed: Sequence[str]) -> None:
    if changed:
        raise InvalidInput(
            f"{job_id} cannot go on as it began; put back what changed, or start a new job:\n" + "\n".join(changed),
            code="resume_mismatch",
        )


class QueuedJob(msgspec.Struct, frozen=True):
    """A job that was claimed from the queue, who records its state, and how many bytes it may use."""

    job: Job
    ledger: Ledger
    memory_limit: int | None = None


class Reproduction(msgspec.Struct, frozen=True, kw_only=True):
    """A version trained again: whether the digest is the `same`, and a line for everything that can
    explain a difference."""

    version: str
    same: bool
    digest: str
    again: str
    differences: tuple[str, ...]


def reproduce(
    version: Version, *, data: Sequence[Path], registry: Registry, plugins: Plugins, on_event: EventSink
) -> Reproduction:
    """Train again from a version's manifest and compare the digests; `data` are files to use
    instead of those that the job recorded.

    Every file must have the sha256 in the manifest; raise NotFound `file_not_found` when one is missing.
    """
    manifest = version.manifest
    if "parameters" not in manifest or "data" not in manifest:
        raise InvalidInput(
            f"{version.name} was not trained here, so it has no manifest to train from", code="no_manifest"
        )
    request = _request_again(version, data, registry)
    resolve_device(request.device)
    parameters = read_parameters(plugins.trainer(request.trainer).parameters, manifest["parameters"])
    processes = connect_process_group(request.device)
    inputs = processes.on_all(
        lambda: read_inputs(request, parameters, registry=registry, plugins=plugins, now=rendered_at(manifest))
    )
    job = processes.on_main(lambda: _start(request, registry))
    now = _manifest(inputs, parameters, (), plugins=plugins, job=job, processes=processes)
    # The quote decided the micro-batch size, on which rounding depends.
    now |= {"quote": manifest["quote"], "repeats": version.name} if "quote" in manifest else {"repeats": version.name}
    host = _host(registry, plugins, on_event, processes, _own(registry, job))
    setup = JobSetup(host=host, job=job, inputs=inputs, parameters=parameters, manifest=now)
    again, files = reproduce_job(setup)
    changed = differences(manifest, now, names=(*IDENTITY, "plugins", "packages", "hardware"))
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
    """The request of a version's job, with its files looked up by sha256 in `data` and at their recorded paths."""
    manifest = version.manifest
    path = _folder(registry, str(manifest.get("job"))).request
    kept = msgspec.json.decode(path.read_bytes(), type=TrainRequest) if path.exists() else None
    remembered = [*kept.data, *([kept.validation] if kept.validation else [])] if kept else []
    at: dict[str, str] = {}
    for candidate in (*map(str, data), *remembered):
        if Path(candidate).exists():
            at.setdefault(data_digest(Path(candidate))[0], str(Path(candidate).absolute()))
    missing = [file for file in manifest["data"] if file["sha256"] not in at]
    if missing:
        names = "; ".join(f"{file['name']} (sha256 {file['sha256'][:12]}…)" for file in missing)
        raise NotFound(f"{version.name} was trained on {names}: name such a file with --data", code="file_not_found")
    used = {file["sha256"] for file in manifest["data"]}
    others = [str(path) for path in data if data_digest(path)[0] not in used]
    if others:
        raise InvalidInput(
            f"{version.name} was not trained on {', '.join(others)}, whose content differs from all of its files; leave that out",
            code="invalid_data",
        )
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


def _host(
    registry: Registry, plugins: Plugins, on_event: EventSink, processes: ProcessGroup, queued: QueuedJob
) -> JobHost:
    return JobHost(
        registry=registry,
        plugins=plugins,
        on_event=on_event,
        processes=processes,
        ledger=queued.ledger,
        memory_limit=queued.memory_limit,
    )


def _own(registry: Registry, job: Job) -> QueuedJob:
    """A job that nobody but this process runs."""
    return QueuedJob(job, OwnJob(registry, job.id))


def _start(request: TrainRequest, registry: Registry) -> Job:
    """Record a new job and make its folder."""
    job = registry.start_job(f"job-{uuid.uuid4().hex[:12]}", adapter=request.adapter, trainer=request.trainer)
    _folder(registry, job.id).path.mkdir(parents=True, exist_ok=True)
    return job


def _folder(registry: Registry, job_id: str) -> JobFolder:
    return JobFolder(registry.home.jobs / job_id)


def _manifest(
    inputs: Inputs,
    parameters: TrainingParameters,
    choices: Sequence[Choice],
    *,
    plugins: Plugins,
    job: Job,
    processes: ProcessGroup,
) -> dict[str, Any]:
    plugin = plugins.owner_of_trainer(inputs.request.trainer)
    used = {record.distribution or record.name: record.version for record in plugins.records() if record.error is None}
    manifest = build_manifest(inputs, parameters, choices, job=job.id, plugin=plugin, plugins=used)
    if processes.size > 1:
        manifest["hardware"]["processes"] = processes.size
    return manifest


def _width(base: Path) -> int:
    """Hidden size of the base; multimodal configurations have it one level down."""
    config: Mapping[str, Any] = read_json(base / "config.json")
    inner = config.get("text_config") or {}
    return int(config.get("hidden_size") or inner.get("hidden_size") or FALLBACK_WIDTH)
