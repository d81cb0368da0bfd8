"""The folder of one training job: the path of every file in it, and writing those files whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["JobFolder", "replace_file"]


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file with `data`: a reader, or a run that is killed meanwhile, leaves or finds the
    old or the new content."""
    staged = path.with_name(path.name + ".new")
    staged.write_bytes(data)
    staged.replace(path)


class JobFolder:
    """A job's folder under `TUNERY_HOME/jobs/`.

    Checkpoints have an atomic write of their own, see `loop/checkpoint.py`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.request = path / "request.json"
        """What the job was started with."""
        self.manifest = path / "manifest.json"
        """Where its version comes from; written before training starts."""
        self.events = path / "metrics.jsonl"
        """Its events, one a line."""
        self.lock = path / "lock"
        """Held by the process that runs the job."""
        self.control = path / "control"
        """`pause` or `cancel`, while one of them is requested."""
        self.parent = path / "parent"
        """The files of the version to continue from."""
        self.base_results = path / "base.json"
        """The base's evaluation for the report."""
        self.objective_state = path / "reference.json"
        """What the objective computed with the untrained model."""
        self.checkpoint = path / "checkpoint"
        """The last checkpoint, a folder."""
        self.best_weights = path / "best.safetensors"
        """The trained weights with the lowest held-out loss so far."""
        self.epoch = path / "epoch"
        """The files of the last epoch's model, while they are being kept."""
        self.output = path / "output"
        """The finished files."""
        self.report = path / "report"
        """The files of the report."""
        self.gates_request = path / "gates.request.json"
        self.gates_results = path / "gates.results.jsonl"
        self.gates_stderr = path / "gates.stderr"
        self.gates_reference = path / "gates.reference.json"
        """The trainer's own log-probabilities of a few rows."""

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest."""
        replace_file(self.manifest, msgspec.json.format(msgspec.json.encode(manifest), indent=2))

    def read_manifest(self) -> dict[str, Any]:
        """The manifest as it was last written."""
        manifest: dict[str, Any] = msgspec.json.decode(self.manifest.read_bytes())
        return manifest

    def new_output(self) -> Path:
        """An empty folder for the finished files."""
        return _emptied(self.output)

    def new_epoch(self) -> Path:
        """An empty folder for the files of an epoch's model."""
        return _emptied(self.epoch)

    def clear(self) -> None:
        """Delete what only a running job needs."""
        for folder in (self.output, self.epoch, self.checkpoint, self.parent):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.best_weights, self.base_results, self.objective_state):
            file.unlink(missing_ok=True)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
