"""Owns starting, resuming and repeating training jobs; what happens in one is `run.py`.

The manifest is on disk before anything is trained. Whatever fails, the registry stays as it was and the job says why.
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
from tunery.plugins.descriptors import load_entrypoint
from tunery.plugins.events import EventSink
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import Choice, TrainingParameters, given_names, read_parameters
from tunery.plugins.runtime.device import resolve_device
from tunery.plugins.training.defaults import Facts, choose
from tunery.plugins.training.inputs.parent import with_parent_shape
from tunery.plugins.training.inputs.read import Inputs, adapter_config, read_inputs
from tunery.plugins.training.inputs.request import TrainRequest
from tunery.plugins.training.job.disk_errors import full_disk_told
from tunery.plugins.training.job.manifest import IDENTITY, build_manifest, changed_files, differences, rendered_at
from tunery.plugins.training.job.resume import Asked, unlike
from tunery.plugins.training.job.run import Run
from tunery.plugins.training.loop.distributed import ProcessGroup, connect_process_group
from tunery.registry import Job, Version
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.names import check_adapter
from tunery.registry.registry import Registry

__all__ = ["Reproduction", "reproduce", "resume", "train"]

FALLBACK_WIDTH = 2048


def train(
    request: TrainRequest,
    parameters: TrainingParameters,
    *,
    registry: Registry,
    plugins: Plugins,
    on_event: EventSink,
) -> Version:
    """Train a version of `request.adapter` and publish it. `on_event` is given every event of the job.

    Parameters that `request.parameters` does not name (or names as "auto") are chosen from the data, the base and the method.
    """
    check_adapter(request.adapter)
    resolve_device(request.device)
    processes = connect_process_group(request.device)
    told = processes.on_main(datetime.now).replace(microsecond=0)
    inputs = processes.on_all(
        lambda: read_inputs(
            request, parameters, registry=registry, plugins=plugins, check=processes.is_main_process, now=told
        )
    )
    facts = Facts(
        rows=len(inputs.corpus.train), held_out=len(inputs.corpus.held_out), hidden=_width(Path(inputs.base.path))
    )
    given = given_names(request.parameters)
    parameters, choices = choose(parameters, given, facts)
    parameters = with_parent_shape(parameters, given, adapter_config(registry, inputs.parent))

    def start() -> tuple[Job, dict[str, Any]]:
        job = _start(request, registry)
        with full_disk_told(job.id):
            (registry.home.jobs / job.id / "request.json").write_bytes(msgspec.json.encode(request))
        return job, _manifest(inputs, parameters, choices, plugins=plugins, job=job, processes=processes)

    job, manifest = processes.on_main(start)
    run = _run(inputs, parameters, manifest, processes, registry=registry, plugins=plugins, job=job, on_event=on_event)
    return run.publish()


def resume(
    job_id: str,
    *,
    registry: Registry,
    plugins: Plugins,
    on_event: EventSink,
    forced_by: str | None = None,
    asked: Asked | None = None,
) -> Version:
    """Go on with a job from its last checkpoint; refused, with what differs, when data or settings changed meanwhile, or when
    something is `asked` for that is not the job's.

    What fails a gate is published if `forced_by` names who wants it.
    """
    job = registry.job(job_id)
    if job.state == "succeeded":
        raise InvalidInput(f"{job_id} has already succeeded: {job.adapter}@{job.version}")
    folder = registry.home.jobs / job_id
    if not (folder / "request.json").exists() or not (folder / "manifest.json").exists():
        raise NotFound(f"{job_id} kept nothing to resume from; start it anew")
    request = msgspec.json.decode((folder / "request.json").read_bytes(), type=TrainRequest)
    if forced_by is not None:
        request = msgspec.structs.replace(request, force=True, actor=forced_by)
    before = msgspec.json.decode((folder / "manifest.json").read_bytes())
    kind = plugins.trainer(request.trainer).parameters
    if asked is not None and (lines := unlike(asked, request, before, kind, registry)):
        raise InvalidInput(
            f"{job_id} goes on as it began; leave out what differs, or start a new job without --resume:\n"
            + "\n".join(lines),
            code="resume_mismatch",
        )
    resolve_device(request.device)
    if before.get("parent"):  # what was asked for may be a name that means another version by now
        request = msgspec.structs.replace(request, parent=before["parent"]["version"])
    # Before rows are read: a file that was cut short has changed, whatever else is wrong with it.
    _refuse(job_id, changed_files(before, [Path(path) for path in (*request.data, request.validation) if path]))
    parameters = read_parameters(kind, before["parameters"])
    processes = connect_process_group(request.device)
    inputs = processes.on_all(
        lambda: read_inputs(request, parameters, registry=registry, plugins=plugins, now=rendered_at(before))
    )
    _refuse(
        job_id, differences(before, _manifest(inputs, parameters, (), plugins=plugins, job=job, processes=processes))
    )
    run = _run(inputs, parameters, before, processes, registry=registry, plugins=plugins, job=job, on_event=on_event)
    return run.publish()


def _refuse(job_id: str, changed: Sequence[str]) -> None:
    if changed:
        raise InvalidInput(
            f"{job_id} cannot go on as it began; put back what changed, or start a new job:\n" + "\n".join(changed),
            code="resume_mismatch",
        )


class Reproduction(msgspec.Struct, frozen=True, kw_only=True):
    """A version trained again: whether its digest came out the same, and a line for everything that may be why not."""

    version: str
    same: bool
    digest: str
    again: str
    differences: tuple[str, ...]


def reproduce(
    version: Version, *, data: Sequence[Path], registry: Registry, plugins: Plugins, on_event: EventSink
) -> Reproduction:
    """Train from a version's manifest and compare; `data` are files to use instead of those the job remembers.

    Every file must have the sha256 that the manifest names.
    """
    manifest = version.manifest
    if "parameters" not in manifest or "data" not in manifest:
        raise InvalidInput(f"{version.name} was not trained here, so it has no manifest to go by", code="no_manifest")
    request = _request_again(version, data, registry)
    resolve_device(request.device)
    parameters = read_parameters(plugins.trainer(request.trainer).parameters, manifest["parameters"])
    processes = connect_process_group(request.device)
    inputs = processes.on_all(
        lambda: read_inputs(request, parameters, registry=registry, plugins=plugins, now=rendered_at(manifest))
    )
    job = processes.on_main(lambda: _start(request, registry))
    now = _manifest(inputs, parameters, (), plugins=plugins, job=job, processes=processes)
    # The quote decided how many rows go through the model at once, and sums depend on that.
    now |= {"quote": manifest["quote"], "repeats": version.name} if "quote" in manifest else {"repeats": version.name}
    run = _run(inputs, parameters, now, processes, registry=registry, plugins=plugins, job=job, on_event=on_event)
    again, files = run.repeat()
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
    """The request of a version's job, its files found by sha256 among `data` and where they were."""
    manifest = version.manifest
    path = registry.home.jobs / str(manifest.get("job")) / "request.json"
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
            f"{version.name} was not trained on {', '.join(others)}, whose content is none of its files'; leave that out",
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


def _start(request: TrainRequest, registry: Registry) -> Job:
    """A new job with its folder."""
    job = registry.start_job(f"job-{uuid.uuid4().hex[:12]}", adapter=request.adapter, trainer=request.trainer)
    (registry.home.jobs / job.id).mkdir(parents=True, exist_ok=True)
    return job


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


def _run(
    inputs: Inputs,
    parameters: TrainingParameters,
    manifest: dict[str, Any],
    processes: ProcessGroup,
    *,
    registry: Registry,
    plugins: Plugins,
    job: Job,
    on_event: EventSink,
) -> Run:
    return Run(
        inputs=inputs,
        parameters=parameters,
        registry=registry,
        plugins=plugins,
        trainer=load_entrypoint(plugins.trainer(inputs.request.trainer).entrypoint)(),
        job=job,
        folder=registry.home.jobs / job.id,
        manifest=manifest,
        on_event=on_event,
        processes=processes,
    )


def _width(base: Path) -> int:
    """Hidden units of the base; multimodal configurations keep them one level down."""
    config: Mapping[str, Any] = read_json(base / "config.json")
    inner = config.get("text_config") or {}
    return int(config.get("hidden_size") or inner.get("hidden_size") or FALLBACK_WIDTH)
