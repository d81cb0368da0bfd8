"""Decide what may enter the registry: PEFT LoRA folders in safetensors that fit their base exactly.

Nothing is ever unpickled and no code of an artifact runs; see `safetensors_header` for what is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.base_identity import check_identity
from tunery.registry.peft.base_shapes import shapes_of
from tunery.registry.peft.config import parse_config, read_config
from tunery.registry.peft.fit import check_fit
from tunery.registry.peft.layout import CONFIG, WEIGHTS
from tunery.registry.peft.safetensors_header import nonfinite_tensor, read_header
from tunery.registry.records import Base

__all__ = ["check_artifact", "files_of"]

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".h5", ".msgpack")
_CODE = (".py", ".pyc", ".so", ".dll", ".sh")


def check_artifact(
    folder: Path, *, base: Base, others: Iterable[Base] = (), trust_base: bool = False
) -> dict[str, Any]:
    """The fields of the adapter's configuration, when the folder is a PEFT LoRA that fits `base` exactly.

    `others` are the other bases known here. `trust_base` accepts an adapter whose configuration names another base; its
    shapes must fit all the same. Raise ArtifactRefused otherwise; the code says why.
    """
    files = files_of(folder)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise ArtifactRefused(
                f"{folder.name} has no {name}: it is not a PEFT adapter saved as safetensors",
                code="artifact_incomplete",
            )
    fields = read_config(files[CONFIG])
    config = parse_config(fields)
    if not trust_base:
        check_identity(fields, base, others)
    headers = {name: read_header(path) for name, path in files.items() if path.suffix == ".safetensors"}
    check_fit(headers[WEIGHTS], config, shapes_of(base))
    for name, header in headers.items():
        nonfinite = nonfinite_tensor(files[name], header)
        if nonfinite is not None:
            raise ArtifactRefused(
                f"{name}: {nonfinite} holds NaN, infinity, or a number too large for bfloat16; train it again",
                code="artifact_nonfinite",
            )
    return fields


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a version by relative POSIX path; raise ArtifactRefused for pickles, code and links outside."""
    root, files = folder.resolve(), {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        _check_file(name, path, root)
        if path.is_file():
            files[name] = path
    return files


def _check_file(name: str, path: Path, root: Path) -> None:
    if not name.isprintable():
        raise ArtifactRefused(f"{name!r} is not a name that every system can read", code="artifact_unsafe")
    if not path.resolve().is_relative_to(root):
        raise ArtifactRefused(f"{name} is a link out of its folder; copy the file itself", code="artifact_unsafe")
    if path.suffix.lower() in _PICKLED:
        raise ArtifactRefused(
            f"{name} is a pickle or another format that can run code; save the adapter as safetensors "
            "(PEFT: save_pretrained(..., safe_serialization=True))",
            code="artifact_pickled",
        )
    if path.suffix.lower() in _CODE:
        raise ArtifactRefused(f"{name} is code; a version holds weights and configuration only", code="artifact_unsafe")
