"""Compare what a command asks for with what a job was started with: a job goes on as it began, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.data.read import data_digest
from tunery.plugins.parameters import AUTO, TrainingParameters, given_names, read_parameters
from tunery.plugins.training.inputs.request import TrainRequest
from tunery.registry.registry import Registry

__all__ = ["Asked", "unlike"]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Options that were given beside a job to resume; None, or empty, is not given."""

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


def unlike(
    asked: Asked, request: TrainRequest, manifest: Mapping[str, Any], kind: type[TrainingParameters], registry: Registry
) -> list[str]:
    """A line for everything that is asked for and not the job's: its name, the job's value, and the other one."""
    files: list[Mapping[str, Any]] = manifest["data"]
    trained, validation = files[: len(request.data)], files[len(request.data) :]
    pairs = [
        ("--method", request.trainer, asked.trainer),
        ("--base", manifest["base"], _same_base(asked.base, manifest, registry)),
        ("--name", request.adapter, asked.adapter),
        ("--from", (manifest.get("parent") or {}).get("version"), _same_parent(asked.parent, manifest, registry)),
        ("--alias", request.alias, asked.alias),
        ("--device", request.device, asked.device),
        ("--data", list(request.data), _same_files(asked.data, request.data, trained)),
        ("--val", _one(request.validation), _same_files(_one(asked.validation), _one(request.validation), validation)),
        ("--allow", sorted(request.allow), sorted(asked.allow) or None),
    ]
    lines = [_line(name, before, now) for name, before, now in pairs if now is not None and now != before]
    return [*lines, *_parameters(asked, request, manifest, kind)]


def _parameters(
    asked: Asked, request: TrainRequest, manifest: Mapping[str, Any], kind: type[TrainingParameters]
) -> Iterator[str]:
    values = msgspec.to_builtins(read_parameters(kind, asked.parameters))
    given = given_names(request.parameters)
    before = msgspec.to_builtins(read_parameters(kind, request.parameters))
    for name, value in asked.parameters.items():
        # What was chosen for the job, or given and then made to fit: either is what the job has.
        has = [manifest["parameters"].get(name)] + ([before[name]] if name in given else [])
        if value == AUTO and name != "precision":
            if name in given:
                yield _line(f"--set {name}", has[-1], AUTO)
        elif values[name] not in has:
            yield _line(f"--set {name}", has[0], values[name])


def _same_base(asked: str | None, manifest: Mapping[str, Any], registry: Registry) -> str | None:
    """The job's base where that is what `asked` means."""
    if asked is None or asked == manifest["base"]:
        return asked
    digest, written = str(manifest["base_digest"]), {asked, str(Path(asked).absolute())}
    known = any(base.digest == digest and written & {base.name, base.source} for base in registry.bases())
    return str(manifest["base"]) if known or digest.startswith(asked) else asked


def _same_parent(asked: str | None, manifest: Mapping[str, Any], registry: Registry) -> str | None:
    """The job's parent where that is what `asked` means by now."""
    parent = manifest.get("parent") or {}
    if asked is None or asked == parent.get("version"):
        return asked
    found = registry.resolve(asked)
    return str(parent["version"]) if found.digest == parent.get("digest") else found.name


def _same_files(asked: Sequence[Path], before: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> Any:
    """The job's files where those that are asked for hold the same."""
    if not asked:
        return None
    same = [str(path.absolute()) for path in asked] == list(before) or (
        all(path.exists() for path in asked)
        and [data_digest(path)[0] for path in asked] == [entry["sha256"] for entry in entries]
    )
    return list(before) if same else [str(path) for path in asked]


def _one(value: Any) -> list[Any]:
    return [] if value is None else [value]


def _line(name: str, before: Any, now: Any) -> str:
    return f"{name}: the job has {_text(before)}, {_text(now)} was asked for"


def _text(value: Any) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
