"""Back a registry up while it is used, and restore it: its database, blobs, bases and the histories of jobs.

A backup is a manifest, `tunery-backup.json`, and objects named by the sha256 of their bytes; either in a folder, to
which the next backup adds only what is new, or in one tar archive.
"""
