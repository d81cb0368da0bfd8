"""Resolve what the user wrote to a base in the registry: one that is there, or one imported from its source.

An import fills a staging folder, which is moved into the home once it is complete. Paths are stored absolute, because
`./model` means another folder elsewhere.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from math import prod
from pathlib import Path

import msgspec

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
    """The base called `reference`, imported from its source where it is not in the home yet, or is damaged there.

    `name` is the name of a new base; by default it is `reference`, or the last part of a path. `say` is called with
    progress messages. Raises UnknownName or NotFound for an unknown reference, ArtifactRefused for one that cannot be
    served, StorageFailed and Unavailable.
    """
    importer = _Importer(registry, plugins, clock, say)
    base = _find_base(reference, registry)
    if base is None:
        return importer.import_base(_absolute(reference), name=name)
    damaged = _damaged_files(base, registry)
    if Path(base.path).is_dir() and not damaged and not _changed_since(Path(base.source), base.added_at):
        # It may have been imported by a version that took more architectures for supported.
        refuse_folder(Path(base.path), base.name)
        return base
    if not damaged and not Path(base.path).is_dir():
        _check_source_exists(base)
    try:
        if damaged:
            say(f"the base {base.name} is damaged ({', '.join(damaged)})")
        return importer.import_base(base.source, name=name or base.name, replace_damaged=bool(damaged))
    except TuneryError as error:
        if not damaged or error.code == "base_exists":
            raise
        raise StorageFailed(
            f"the base {base.name} is damaged ({', '.join(damaged)} in {base.path}), and cannot be imported again from {base.source}: "
            f"{error.message}",
            code="base_damaged",
        ) from error


class _Importer(msgspec.Struct, frozen=True):
    """Imports bases into a registry, from the sources that the plugins know."""

    registry: Registry
    plugins: Plugins
    clock: Callable[[], float]
    say: Callable[[str], None]

    def import_base(self, reference: str, *, name: str | None, replace_damaged: bool = False) -> Base:
        """Import a base from its source, under `name` or one made from the reference."""
        home = self.registry.home
        source = _source(reference, self.plugins, self.registry)
        self.say(f"importing {reference}: {source.summary}; this happens once")
        try:
            with staged(home.staging, "base") as folder:
                origin = _fill(source, reference, folder)
                if origin:
                    self.say(f"{reference}: {origin}")
                digest = base_digest(folder)
                base = Base(
                    name=name or _name(reference),
                    digest=digest,
                    source=reference,
                    path=str(home.bases / digest),
                    parameters=_parameters(folder),
                    added_at=self.clock(),
                )
                if replace_damaged and Path(base.path).is_dir():
                    Path(base.path).rename(folder.with_name(f"damaged-{folder.name}"))
                _move(folder, Path(base.path))
                changed_files(Path(base.path), digest, home.base_stamps(digest))
        except TuneryError:
            raise
        except OSError as error:
            raise StorageFailed(
                f"{reference} could not be imported: {error}; nothing was changed", code=disk_code(error)
            ) from error
        return self.registry.add_base(base)


def _find_base(reference: str, registry: Registry) -> Base | None:
    """A base in the registry with this name or digest, or imported from this path."""
    for candidate in (reference, _absolute(reference)):
        try:
            base = registry.base(candidate)
        except NotFound:
            continue
        # A relative path that was recorded once may mean another folder now.
        if candidate in (base.name, _absolute(candidate)) or base.digest.startswith(candidate):
            return base
    return None


def _absolute(reference: str) -> str:
    """A path made absolute; anything else as it is."""
    path = Path(reference).expanduser()
    if reference.startswith(("/", "./", "../", "~")) or reference.endswith(".gguf") or path.is_dir():
        return os.path.abspath(path)  # noqa: PTH100  (pathlib keeps the dots)
    return reference


def _damaged_files(base: Base, registry: Registry) -> list[str]:
    """Names of files that do not match the base's digest; [] where the base is not in the home."""
    folder = Path(base.path)
    if folder.name != base.digest or not folder.is_dir():
        return []
    return changed_files(folder, base.digest, registry.home.base_stamps(base.digest))


def _check_source_exists(base: Base) -> None:
    """Raise NotFound where the path that a base was imported from is not on this machine."""
    source = Path(base.source)
    if source.is_absolute() and not source.exists():
        raise NotFound(
            f"the base {base.name} ({base.digest[:12]}) is not in this home, and {base.source}, which it was imported from, is not on this "
            "machine: add the same model from where it is now with tunery bases add FOLDER; it is recognised by its content",
            code="base_not_found",
        )


def _changed_since(source: Path, moment: float) -> bool:
    """Whether the folder or file that a base was imported from has been written to since `moment` (seconds since the
    epoch)."""
    if not source.is_absolute():
        return False
    try:
        files = source.iterdir() if source.is_dir() else (source,)
        return any(path.stat().st_mtime > moment for path in files)
    except OSError:
        # Gone or unreadable: what was imported from there is unchanged.
        return False


def _fill(source: BaseSource, reference: str, staged: Path) -> str | None:
    """Let a source fill the folder, and check the result. A third party's source may raise anything."""
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
            f"the base {same[0]!r} was imported from a folder of that name: use its name"
            if same
            else "look at the path"
        )
        raise NotFound(f"there is no folder {reference} on this machine: {hint}", code="base_not_found")
    names = [base.name for base in bases]
    raise UnknownName("base", reference, {"smollm2-135m", *names}, param="base")


def _name(reference: str) -> str:
    """A short name for a reference: a path's last part without `.gguf`, anything else as it is."""
    short = reference
    if reference.startswith(("/", ".", "~")) or reference.endswith(".gguf"):
        short = Path(reference).name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._@/-]+", "-", short).strip("-") or "base"


def _parameters(folder: Path) -> int:
    return sum(prod(entry.shape) for path in folder.glob("*.safetensors") for entry in read_header(path).values())


def _move(staged: Path, final: Path) -> None:
    """Move a finished base into place. Another process may have put the same one there meanwhile."""
    try:
        staged.rename(final)
    except OSError as error:
        if not final.is_dir():
            raise StorageFailed(f"the base could not be stored in {final.parent}: {error.strerror}") from error
