"""Import adapters that were made elsewhere: check what came, name its tensors as PEFT does, publish it as a version."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tunery.registry.errors import ArtifactRefused, NotFound, StorageFailed, TuneryError, disk_code
from tunery.registry.hub.repository import IDENTITY, identified_base
from tunery.registry.peft.base_identity import DIGEST_KEY, check_digest
from tunery.registry.peft.base_shapes import base_shapes
from tunery.registry.peft.config import read_config
from tunery.registry.peft.layout import CONFIG, WEIGHTS
from tunery.registry.peft.renaming import normalise_keys
from tunery.registry.peft.tokenizer_files import differences
from tunery.registry.records import Base, NewVersion, Version
from tunery.registry.registry import Registry
from tunery.registry.storage.leases import staged

__all__ = ["Destination", "check_present", "check_recorded", "import_folder", "publish_staged", "staging"]


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """What an imported adapter becomes: a version of `adapter`, checked against `base`. The fields are as in
    NewVersion."""

    adapter: str
    base: Base
    actor: str
    alias: str | None = None
    trust_base: bool = False


def import_folder(registry: Registry, folder: Path, destination: Destination) -> Version:
    """Import a local PEFT folder; its other files are left out.

    Raise NotFound where there is no adapter, ArtifactRefused where it does not fit.
    """
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}")
    check_present(folder.name, {path.name for path in folder.iterdir()})
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).resolve().is_relative_to(folder.resolve()) or not (folder / name).is_file():
            raise ArtifactRefused(
                f"{name} is not a file of {folder.name}, or a link out of it; copy the file itself",
                code="artifact_unsafe",
            )
    with staging(registry, "import") as place:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(folder / name, place / name)
        check_recorded(place / CONFIG, folder / IDENTITY, destination)
        warnings = differences(folder, Path(destination.base.path))
        return publish_staged(registry, place, destination, origin={"folder": folder.name}, warnings=warnings)


def check_present(source: str, present: set[str], everything: Iterable[str] = ()) -> None:
    """Raise unless the names in `present` include a PEFT adapter's two files; say what is there instead.

    NotFound (not_an_adapter), naming subfolders that have adapters among `everything`; ArtifactRefused
    (artifact_pickled).
    """
    if CONFIG in present and WEIGHTS in present:
        return
    deeper = sorted(name.removesuffix(f"/{WEIGHTS}") for name in everything if name.endswith(f"/{WEIGHTS}"))
    if deeper:
        repository = "/".join(source.partition("@")[0].split("/")[:2])
        raise NotFound(
            f"{source} has no {CONFIG} and {WEIGHTS}; the repository has adapters in subfolders: "
            + ", ".join(f"{repository}/{folder}" for folder in deeper[:8]),
            code="not_an_adapter",
        )
    pickled = sorted(name for name in present if re.fullmatch(r"adapter_model\.(bin|pt|pth|ckpt|pkl)", name))
    if pickled:
        raise ArtifactRefused(
            f"{source} has its weights as {pickled[0]}, a pickle, which is never read: save it as safetensors "
            "(PEFT: save_pretrained(..., safe_serialization=True))",
            code="artifact_pickled",
        )
    raise NotFound(
        f"{source} has no {CONFIG} and {WEIGHTS}: it is not a PEFT adapter in safetensors; "
        f"it has: {', '.join(sorted(present)[:8]) or 'nothing'}",
        code="not_an_adapter",
    )


def check_recorded(config_file: Path, identity: Path, destination: Destination) -> None:
    """Raise ArtifactRefused (wrong_base) when another base's digest came with an adapter, unless that is trusted.

    Earlier releases wrote the digest into the configuration, where PEFT warns of it; it is taken out there.
    """
    config = read_config(config_file)
    recorded = config.pop(DIGEST_KEY, None)
    if recorded is not None:
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True))
    if not destination.trust_base:
        check_digest(recorded, destination.base)
        check_digest(identified_base(identity), destination.base)


@contextmanager
def staging(registry: Registry, what: str) -> Iterator[Path]:
    """A folder for incoming files, removed afterwards; an OSError in the block becomes StorageFailed."""
    try:
        with staged(registry.home.staging, what) as folder:
            yield folder
    except OSError as error:
        if isinstance(error, TuneryError):
            raise
        raise StorageFailed(
            f"{error.filename or registry.home.staging}: {error.strerror or error}; nothing was changed",
            code=disk_code(error),
        ) from error


def publish_staged(
    registry: Registry,
    folder: Path,
    destination: Destination,
    *,
    origin: dict[str, Any],
    warnings: list[str],
    report: Path | None = None,
) -> Version:
    """Publish a staged adapter, with PEFT's names for its tensors; `origin` and `warnings` go into the manifest."""
    base = destination.base
    renamed = normalise_keys(folder / WEIGHTS, base_shapes(Path(base.path)))
    manifest = {
        "origin": origin | ({"renamed_tensors": renamed} if renamed else {}),
        "base": base.name,
        "base_digest": base.digest,
        **({"warnings": warnings} if warnings else {}),
    }
    return registry.publish(
        NewVersion(
            adapter=destination.adapter,
            folder=folder,
            base=base,
            method="imported",
            manifest=manifest,
            metrics={},
            actor=destination.actor,
            alias=destination.alias,
            trust_base=destination.trust_base,
            report=report,
        )
    )
