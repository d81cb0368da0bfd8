"""Owns going from what the user wrote to a base in the registry: found by name, or made once in a staging folder and moved.

Paths are kept absolute: what `./model` meant in one folder must not be found from another.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from math import prod
from pathlib import Path

from tunery.plugins.bases.architectures import refuse_folder
from tunery.plugins.bases.checks import check_base
from tunery.plugins.hookspecs import BaseSource
from tunery.plugins.manager import Plugins, load_entrypoint
from tunery.registry import Base
from tunery.registry.digest import file_digest
from tunery.registry.errors import NotFound, StorageFailed, TuneryError, Unavailable, UnknownName
from tunery.registry.registry import Registry
from tunery.registry.safetensors_header import read_header

__all__ = ["base_digest", "resolve_base"]

_INCIDENTAL = frozenset(
    {"_model_name_or_path", "_name_or_path", "is_local", "local_files_only", "name_or_path", "transformers_version"}
)


def resolve_base(
    reference: str,
    *,
    registry: Registry,
    plugins: Plugins,
    name: str | None = None,
    clock: Callable[[], float] = time.time,
    say: Callable[[str], None] = lambda text: None,
) -> Base:
    """The base called `reference`, taken from its source into the home when it is not there yet.

    `name` is what to call a new base; by default what was written, without the folders of a path.
    """
    known = _known(reference, registry)
    if known is not None:
        if Path(known.path).is_dir() and not _changed_since(Path(known.source), known.added_at):
            # It may have been taken when more was believed to be served.
            refuse_folder(Path(known.path), known.name)
            return known
        reference, name = known.source, name or known.name
    else:
        reference = _absolute(reference)
    source = _source(reference, plugins, registry)
    say(f"taking {reference}: {source.summary}; this happens once")
    staged = registry.home.staging / f"base-{uuid.uuid4().hex}"
    try:
        staged.mkdir(parents=True)
        origin = _fill(source, reference, staged)
        if origin:
            say(f"{reference}: {origin}")
        digest = base_digest(staged)
        base = Base(
            name=name or _name(reference),
            digest=digest,
            source=reference,
            path=str(registry.home.bases / digest),
            parameters=_parameters(staged),
            added_at=clock(),
        )
        _settle(staged, Path(base.path))
    except TuneryError:
        raise
    except OSError as error:
        raise StorageFailed(f"{reference} could not be taken: {error}; nothing was changed") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return registry.add_base(base)


def base_digest(folder: Path) -> str:
    """Hex sha256 over weights, tokenizer, chat template and configuration; not over where or when they were saved."""
    digest = hashlib.sha256(b"tunery base 1\n")
    for path in sorted(folder.iterdir()):
        content = _settings_digest(path) if path.name.endswith("config.json") else file_digest(path)[0]
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()


def _settings_digest(path: Path) -> str:
    """Hex sha256 of a configuration file's meaning: without what transformers notes of where and how it was saved."""
    settings = {name: value for name, value in json.loads(path.read_text()).items() if name not in _INCIDENTAL}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _known(reference: str, registry: Registry) -> Base | None:
    """A base that was taken before: by its name or digest, or from this very place."""
    for wanted in (reference, _absolute(reference)):
        try:
            found = registry.base(wanted)
        except NotFound:
            continue
        # A relative path that an equal text was once recorded for may be another folder now.
        if wanted in (found.name, _absolute(wanted)) or found.digest.startswith(wanted):
            return found
    return None


def _absolute(reference: str) -> str:
    """A path made absolute; anything else as it is."""
    path = Path(reference).expanduser()
    if reference.startswith(("/", "./", "../", "~")) or reference.endswith(".gguf") or path.is_dir():
        return os.path.abspath(path)  # noqa: PTH100  (pathlib keeps the dots)
    return reference


def _changed_since(source: Path, moment: float) -> bool:
    """Whether the folder or file that a base was taken from was written to afterwards."""
    if not source.is_absolute():
        return False
    try:
        files = source.iterdir() if source.is_dir() else (source,)
        return any(path.stat().st_mtime > moment for path in files)
    except OSError:
        # Gone, or not ours to read: what was taken from there still is what it was.
        return False


def _fill(source: BaseSource, reference: str, staged: Path) -> str | None:
    """Let a source do its work, and check what it left; a third party's source may raise anything."""
    try:
        origin: str | None = load_entrypoint(source.entrypoint)(reference, staged)
    except (TuneryError, OSError):
        raise
    except Exception as error:
        raise Unavailable(
            f"the base source {source.name!r} failed on {reference}: {type(error).__name__}: {error}"
        ) from error
    check_base(staged, reference)
    return origin


def _source(reference: str, plugins: Plugins, registry: Registry) -> BaseSource:
    for source in plugins.base_sources():
        if source.claims(reference):
            return source
    known = [base.name for base in registry.bases()]
    raise UnknownName("base", reference, {"smollm2-135m", *known}, param="base")


def _name(reference: str) -> str:
    """A short name for what was written: a path's last part without `.gguf`, anything else as it is."""
    short = reference
    if reference.startswith(("/", ".", "~")) or reference.endswith(".gguf"):
        short = Path(reference).name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._@/-]+", "-", short).strip("-") or "base"


def _parameters(folder: Path) -> int:
    return sum(prod(entry.shape) for path in folder.glob("*.safetensors") for entry in read_header(path).values())


def _settle(staged: Path, final: Path) -> None:
    """Move a finished base to its place; somebody else may have put the same one there meanwhile."""
    try:
        staged.rename(final)
    except OSError as error:
        if not final.is_dir():
            raise StorageFailed(f"the base could not be stored in {final.parent}: {error.strerror}") from error
