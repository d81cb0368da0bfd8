"""Turn the names in a queued request into what this machine trains from: paths of the files, and the device."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tunery.plugins.runtime.device import resolve_device
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.inputs.request import TrainRequest
from tunery.registry.errors import InvalidInput, StorageFailed, disk_code
from tunery.registry.records import DataFile, Job
from tunery.registry.registry import Registry
from tunery.registry.storage.digest import file_digest

__all__ = ["local_request"]


def local_request(registry: Registry, job: Job, folder: JobFolder) -> TrainRequest:
    """The request with its files in the job's folder, under the names they were uploaded with.

    They stay there when the upload is deleted. Raise NotFound for a file that is gone, StorageFailed where the disk does
    not take it, or has other bytes by now than were uploaded (file_damaged).
    """
    asked = job.request
    if asked is None:
        raise InvalidInput(f"{job.id} was not queued")
    ids = (*asked.data, *((asked.validation,) if asked.validation else ()))
    paths = [
        _place(registry, registry.data_files.get(file), folder.path / "data" / str(i)) for i, file in enumerate(ids)
    ]
    return TrainRequest(
        adapter=asked.adapter,
        trainer=asked.trainer,
        base=asked.base,
        data=tuple(map(str, paths[: len(asked.data)])),
        validation=str(paths[-1]) if asked.validation else None,
        parent=asked.parent,
        alias=asked.alias,
        device=resolve_device(asked.device),
        parameters=asked.parameters,
        learning_rate_multiplier=asked.learning_rate_multiplier,
        allow=asked.allow,
        force=asked.force,
        actor=asked.actor or asked.adapter.partition("/")[0],
    )


def _place(registry: Registry, file: DataFile, folder: Path) -> Path:
    """The file's bytes under its own name; the name's end says which format it has."""
    name = Path(file.name).name or "rows.jsonl"
    target = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(registry.data_files.path(file), target)
        except OSError:
            shutil.copyfile(registry.data_files.path(file), target)
    except OSError as error:
        raise StorageFailed(
            f"{file.id} ({name}) cannot be read or copied: {error.strerror}", code=disk_code(error)
        ) from error
    if file_digest(target)[0] != file.sha256:
        raise StorageFailed(
            f"{file.id} ({name}) is damaged: the bytes on disk are not those that were uploaded; check the disk, and "
            "upload the file again",
            code="file_damaged",
        )
    return target
