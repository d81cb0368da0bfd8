"""What must not be lost: versions, aliases and their history, blobs, manifests and jobs.

Words, used the same way everywhere:

    base       a base model pinned by content
    adapter    a named line of fine-tunes: tenant/name
    version    one immutable fine-tune of an adapter: number and digest
    alias      a movable pointer to a version; every move is recorded
    reference  what a caller writes: acme/support, acme/support@3, acme/support@canary
    manifest   where a version came from
    job        one run of a trainer

Importing this package imports no database driver; `tunery.registry.registry.Registry` is the way in.
"""

from tunery.registry.records import AliasMove, Base, DataUse, FileEntry, Job, NewVersion, Version

__all__ = ["AliasMove", "Base", "DataUse", "FileEntry", "Job", "NewVersion", "Version"]
