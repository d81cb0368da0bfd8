"""Keep fine-tunes as versions: their files, their origin, the aliases that point to them, and the jobs that made them.

    base       a base model pinned by the digest of its files
    adapter    a named line of fine-tunes: tenant/name
    version    one immutable fine-tune of an adapter, with a number and a digest
    alias      a movable pointer to a version; every move is recorded
    reference  what a caller writes: acme/support, acme/support@3, acme/support@canary
    manifest   where a version came from
    job        one run of a trainer

Publish a folder that PEFT saved, and find it again:

    >>> from tunery.registry import Home, NewVersion, Registry
    >>> registry = Registry.open(Home(home))
    >>> base = registry.add_base(base)
    >>> new = NewVersion(
    ...     adapter="acme/support", folder=folder, base=base, method="lora", manifest={}, metrics={"eval_loss": 1.2},
    ...     actor="jane", alias="production",
    ... )
    >>> registry.publish(new).name
    'acme/support@1'
    >>> registry.resolve("acme/support@production").metrics
    {'eval_loss': 1.2}
    >>> [move.after for move in registry.history("acme/support")]
    [1]
    >>> registry.close()

Importing this package imports no database driver and no Hub client; the names that need one are imported when they are
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunery.registry.errors import (
    ArtifactRefused,
    Conflict,
    InvalidData,
    InvalidInput,
    JobCancelled,
    JobPaused,
    NotFound,
    Overloaded,
    StorageFailed,
    TrainingFailed,
    TuneryError,
    Unavailable,
    UnknownName,
)
from tunery.registry.home import Home
from tunery.registry.lazy_exports import lazy_exports
from tunery.registry.names import Reference, parse_reference
from tunery.registry.records import AliasMove, Base, DataUse, FileEntry, Job, NewVersion, Version

if TYPE_CHECKING:
    from tunery.registry.hub.incoming import Destination, import_folder
    from tunery.registry.hub.pull import pull_from_hub
    from tunery.registry.hub.push import publish_to_hub
    from tunery.registry.registry import Registry

__all__ = [
    "AliasMove",
    "ArtifactRefused",
    "Base",
    "Conflict",
    "DataUse",
    "Destination",
    "FileEntry",
    "Home",
    "InvalidData",
    "InvalidInput",
    "Job",
    "JobCancelled",
    "JobPaused",
    "NewVersion",
    "NotFound",
    "Overloaded",
    "Reference",
    "Registry",
    "StorageFailed",
    "TrainingFailed",
    "TuneryError",
    "Unavailable",
    "UnknownName",
    "Version",
    "import_folder",
    "parse_reference",
    "publish_to_hub",
    "pull_from_hub",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Destination": "tunery.registry.hub.incoming",
        "Registry": "tunery.registry.registry",
        "import_folder": "tunery.registry.hub.incoming",
        "publish_to_hub": "tunery.registry.hub.push",
        "pull_from_hub": "tunery.registry.hub.pull",
    },
)
