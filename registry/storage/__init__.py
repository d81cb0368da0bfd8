"""The SQLite database, the blob store and the manifests kept beside the blobs."""
