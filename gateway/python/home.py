"""Where the Python API and the command line keep things, and whom they record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunery.registry.audit.origin import local_actor
from tunery.registry.home import Home

if TYPE_CHECKING:
    from tunery.registry.registry import Registry

__all__ = ["current_actor", "find_home", "open_registry"]


def open_registry(home: str | Path | None = None, *, scarce: bool = False) -> Registry:
    """Open the registry of `home`, by default of `TUNERY_HOME`; use it in a `with` block or close it.

    A new folder gets a new registry. `scarce` also opens one on a full disk, for removing what takes up the room.

    Raises StorageFailed where the folder cannot be used, or holds files but no database (code `registry_lost`).
    """
    from tunery.registry.registry import Registry

    return Registry.open(find_home(home), scarce=scarce)


def find_home(folder: str | Path | None = None) -> Home:
    """The home at `folder`, by default the one that `TUNERY_HOME` names."""
    return Home.from_env() if folder is None else Home(Path(folder).expanduser().absolute())


def current_actor() -> str:
    """Whom to record with what is changed: `user:` and what `TUNERY_ACTOR` says, else the user's name."""
    return local_actor()
