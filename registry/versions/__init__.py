"""What happens to versions: publishing, aliases, lineage, reports, verification and garbage collection."""
