"""Everything that is done with versions: publishing, aliases, lineage, reports, verification and garbage collection."""
