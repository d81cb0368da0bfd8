"""What must not be lost: versions, aliases and their history, blobs, manifests and jobs."""

from tunery.registry.records import AliasMove, Base, FileEntry, Job, Version

__all__ = ["AliasMove", "Base", "FileEntry", "Job", "Version"]
