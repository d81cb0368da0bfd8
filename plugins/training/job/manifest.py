"""The manifest of a job: what its version is made from, and how two manifests differ."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.data.read import data_digest
from tunery.plugins.parameters import Choice, TrainingParameters
from tunery.plugins.runtime.machine import describe_machine
from tunery.plugins.training.inputs.read import Inputs

__all__ = ["IDENTITY", "build_manifest", "changed_files", "differences", "fingerprint", "rendered_at"]

PACKAGES = (
    "tunery",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "jinja2",
)

IDENTITY = ("base_digest", "data", "parameters", "parent", "template", "trainer", "plugin", "validation")
"""The parts of a manifest that decide a run's result, given the same packages and hardware."""


def build_manifest(
    inputs: Inputs,
    parameters: TrainingParameters,
    choices: Sequence[Choice],
    *,
    job: str,
    plugin: str,
    plugins: Mapping[str, str],
) -> dict[str, Any]:
    """Everything that is known before the first step.

    `plugin` is the package and version that the trainer comes from, `plugins` are the versions of all loaded plugins.
    The manifest's `validation` says that the last data file is held out whole.
    """
    request, base, parent, corpus = inputs.request, inputs.base, inputs.parent, inputs.corpus
    return {
        "job": job,
        "trainer": request.trainer,
        "plugin": plugin,
        "base": base.name,
        "base_digest": base.digest,
        "parent": {"version": parent.name, "digest": parent.digest} if parent else None,
        "data": [msgspec.to_builtins(file) for file in corpus.files],
        "validation": request.validation is not None,
        "held_out": len(corpus.held_out),
        "data_check": msgspec.to_builtins(inputs.checked),
        "template": inputs.template,
        "template_text": inputs.template_text,
        "template_arguments": {"now": inputs.now.isoformat()},
        "parameters": msgspec.to_builtins(parameters),
        "choices": [msgspec.to_builtins(choice) for choice in choices],
        "seed": parameters.seed,
        "plugins": dict(plugins),
        "packages": {"python": platform.python_version()} | {name: package_version(name) for name in PACKAGES},
        "device": request.device,
        "hardware": describe_machine(request.device),
        "started_at": time.time(),
    }


def rendered_at(manifest: Mapping[str, Any]) -> datetime | None:
    """The current time as templates saw it when a manifest's rows were rendered; None in manifests
    that do not record it."""
    now = (manifest.get("template_arguments") or {}).get("now")
    return datetime.fromisoformat(now) if now else None


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """A digest over everything that a checkpoint depends on."""
    parts = {name: manifest.get(name) for name in IDENTITY}
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, names: Sequence[str] = IDENTITY) -> list[str]:
    """A line for every difference between two manifests, such as `parameters.seed: 1 → 2`."""
    lines: list[str] = []
    for name in names:
        lines += _compare(name, before.get(name), now.get(name))
    return lines


def changed_files(manifest: Mapping[str, Any], paths: Sequence[Path]) -> list[str]:
    """A line for every data file whose content differs from the manifest's; missing files are
    reported by whoever reads them."""
    kept = manifest["data"]
    now = [
        {**entry, "sha256": data_digest(path)[0]} if path.exists() else entry
        for entry, path in zip(kept, paths, strict=False)
    ]
    return _compare("data", kept, now)


def _compare(path: str, before: Any, now: Any) -> list[str]:
    if before == now:
        return []
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = list(dict.fromkeys([*before, *now]))
        return [line for key in keys for line in _compare(f"{path}.{key}", before.get(key), now.get(key))]
    if isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        return [
            line for i, pair in enumerate(zip(before, now, strict=True)) for line in _compare(f"{path}[{i}]", *pair)
        ]
    return [f"{path}: {_short(before)} → {_short(now)}"]


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "…"
