"""Compare the options given beside `--resume` with those that the job was started with: a job is
resumed as it began, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.data.read import data_digest
from tunery.plugins.parameters import AUTO, TrainingParameters, given_names, read_parameters
from tunery.plugins.training.inputs.request import TrainRequest
from tunery.registry.registry import Registry

__all__ = ["ResumeOptions", "conflicting_options"]


class ResumeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options given beside `--resume`; None or empty means not given."""

    trainer: str | None = None
    base: str | None = None
    adapter: str | None = None
    parent: str | None = None
    alias: str | None = None
    device: str | None = None
    data: Sequence[Path] = ()
    validation: Path | None = None
    allow: Sequence[str] = ()
    parameters: Mapping[str, Any] = {}


def conflicting_options(
    options: ResumeOptions,
    request: TrainRequest,
    manifest: Mapping[str, Any],
    kind: type[TrainingParameters],
    registry: Registry,
) -> list[str]:
    """A line for every given option that differs from the job's: its name, the job's value, and the given one."""
    files: list[Mapping[str, Any]] = manifest["data"]
    data_files, validation_files = files[: len(request.data)], files[len(request.data) :]
    pairs = [
        ("--method", request.trainer, options.trainer),
        ("--base", manifest["base"], _same_base(options.base, manifest, registry)),
        ("--name", request.adapter, options.adapter),
        ("--from", (manifest.get("parent") or {}).get("version"), _same_parent(options.parent, manifest, registry)),
        ("--alias", request.alias, options.alias),
        ("--device", request.device, options.device),
        ("--data", list(request.data), _same_files(options.data, request.data, data_files)),
        (
            "--val",
            _one(request.validation),
            _same_files(_one(options.validation), _one(request.validation), validation_files),
        ),
        ("--allow", sorted(request.allow), sorted(options.allow) or None),
    ]
    lines = [_line(name, before, now) for name, before, now in pairs if now is not None and now != before]
    return [*lines, *_parameters(options, request, manifest, kind)]


def _parameters(
    options: ResumeOptions, request: TrainRequest, manifest: Mapping[str, Any], kind: type[TrainingParameters]
) -> Iterator[str]:
    values = msgspec.to_builtins(read_parameters(kind, options.parameters))
    given = given_names(request.parameters)
    before = msgspec.to_builtins(read_parameters(kind, request.parameters))
    for name, value in options.parameters.items():
        # What was chosen for the job, or given and then made to fit: either is what the job has.
        has = [manifest["parameters"].get(name)] + ([before[name]] if name in given else [])
        if value == AUTO and name != "precision":
            if name in given:
                yield _line(f"--set {name}", has[-1], AUTO)
        elif values[name] not in has:
            yield _line(f"--set {name}", has[0], values[name])


def _same_base(given: str | None, manifest: Mapping[str, Any], registry: Registry) -> str | None:
    """The job's base when `given` is another name for it; else what was given."""
    if given is None or given == manifest["base"]:
        return given
    digest, written = str(manifest["base_digest"]), {given, str(Path(given).absolute())}
    same = any(base.digest == digest and written & {base.name, base.source} for base in registry.bases())
    return str(manifest["base"]) if same or digest.startswith(given) else given


def _same_parent(given: str | None, manifest: Mapping[str, Any], registry: Registry) -> str | None:
    """The job's parent when `given` now means the same version; else the version that it means."""
    parent = manifest.get("parent") or {}
    if given is None or given == parent.get("version"):
        return given
    version = registry.resolve(given)
    return str(parent["version"]) if version.digest == parent.get("digest") else version.name


def _same_files(given: Sequence[Path], before: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> Any:
    """The job's files when those given have the same content; else those given."""
    if not given:
        return None
    same = [str(path.absolute()) for path in given] == list(before) or (
        all(path.exists() for path in given)
        and [data_digest(path)[0] for path in given] == [entry["sha256"] for entry in entries]
    )
    return list(before) if same else [str(path) for path in given]


def _one(value: Any) -> list[Any]:
    return [] if value is None else [value]


def _line(name: str, before: Any, now: Any) -> str:
    return f"{name}: the job has {_text(before)}, {_text(now)} was asked for"


def _text(value: Any) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
