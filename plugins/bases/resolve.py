"""Owns going from what the user wrote to a base in the registry: found by name, or made once in a staging folder and moved.

Paths are kept absolute: what `./model` meant in one folder must not be found from another.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from math import prod
from pathlib import Path

from tunery.plugins.bases.architectures import refuse_folder
from tunery.plugins.bases.validation import check_base
from tunery.plugins.descriptors import load_entrypoint
from tunery.plugins.hookspecs import BaseSource
from tunery.plugins.manager import Plugins
from tunery.registry import Base
from tunery.registry.base_files import base_digest, changed_files
from tunery.registry.errors import NotFound, StorageFailed, TuneryError, Unavailable, UnknownName, disk_code
from tunery.registry.peft.safetensors_header import read_header
from tunery.registry.registry import Registry
from tunery.registry.storage.leases import staged

__all__ = ["base_digest", "resolve_base"]


def resolve_base(
    reference: str,
    *,
    registry: Registry,
    plugins: Plugins,
    name: str | None = None,
    clock: Callable[[], float] = time.time,
    say: Callable[[str], None] = lambda text: None,
) -> Base:
    """The base called `reference`, taken from its source into the home when it is not there yet, or is damaged there.

    `name` is what to call a new base; by default what was written, without the folders of a path.
    """
    known = _known(reference, registry)
    if known is None:
        return _take(_absolute(reference), registry, plugins, name=name, clock=clock, say=say)
    wrong = _damaged(known, registry)
    if Path(known.path).is_dir() and not wrong and not _changed_since(Path(known.source), known.added_at):
        # It may have been taken when more was believed to be served.
        refuse_folder(Path(known.path), known.name)
        return known
    if not wrong and not Path(known.path).is_dir():
        _check_here(known)
    try:
        if wrong:
            say(f"the base {known.name} is damaged ({', '.join(wrong)})")
        return _take(known.source, registry, plugins, name=name or known.name, clock=clock, say=say, again=bool(wrong))
    except TuneryError as error:
        if not wrong or error.code == "base_exists":
            raise
        raise StorageFailed(
            f"the base {known.name} is damaged ({', '.join(wrong)} in {known.path}), and cannot be taken again from {known.source}: "
            f"{error.message}",
            code="base_damaged",
        ) from error


def _take(
    reference: str,
    registry: Registry,
    plugins: Plugins,
    *,
    name: str | None,
    clock: Callable[[], float],
    say: Callable[[str], None],
    again: bool = False,
) -> Base:
    """Take a base from its source; `again` in place of a damaged one."""
    source = _source(reference, plugins, registry)
    say(f"taking {reference}: {source.summary}; this happens once")
    try:
        with staged(registry.home.staging, "base") as folder:
            origin = _fill(source, reference, folder)
            if origin:
                say(f"{reference}: {origin}")
            digest = base_digest(folder)
            base = Base(
                name=name or _name(reference),
                digest=digest,
                source=reference,
                path=str(registry.home.bases / digest),
                parameters=_parameters(folder),
                added_at=clock(),
            )
            if again and Path(base.path).is_dir():
                Path(base.path).rename(folder.with_name(f"damaged-{folder.name}"))
            _settle(folder, Path(base.path))
            changed_files(Path(base.path), digest, registry.home.verified(digest))
    except TuneryError:
        raise
    except OSError as error:
        raise StorageFailed(
            f"{reference} could not be taken: {error}; nothing was changed", code=disk_code(error)
        ) from error
    return registry.add_base(base)


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


def _damaged(base: Base, registry: Registry) -> list[str]:
    """Names of a base's files that do not match its digest, where it is in the home."""
    folder = Path(base.path)
    if folder.name != base.digest or not folder.is_dir():
        return []
    return changed_files(folder, base.digest, registry.home.verified(base.digest))


def _check_here(base: Base) -> None:
    """Raise NotFound where neither a base nor the folder it was taken from is on this machine."""
    source = Path(base.source)
    if source.is_absolute() and not source.exists():
        raise NotFound(
            f"the base {base.name} ({base.digest[:12]}) is not in this home, and {base.source}, which it was taken from, is not on this "
            "machine: take the same model from where it lies now with tunery bases add FOLDER; it is known by its content",
            code="base_not_found",
        )


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
    bases = registry.bases()
    if Path(reference).is_absolute():
        same = [base.name for base in bases if Path(reference).name in (base.name, Path(base.source).name)]
        hint = (
            f"the base {same[0]!r} was taken from a folder of that name: use its name" if same else "look at the path"
        )
        raise NotFound(f"there is no folder {reference} on this machine: {hint}", code="base_not_found")
    known = [base.name for base in bases]
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
