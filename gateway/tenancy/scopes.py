"""Which scopes of a key each handler needs, in its `opt`: one of those named."""

from __future__ import annotations

__all__ = ["ADMIN", "DATA", "INFER", "METRICS", "PUBLISH", "SCOPE", "TRAIN"]

SCOPE = "scope"
"""The entry of `opt`; a handler without it is open to all."""
INFER = ("infer",)
TRAIN = ("train",)
DATA = ("infer", "train")
"""Files are what batches ask, and what jobs train on."""
PUBLISH = ("publish",)
METRICS = ("metrics", "admin")
ADMIN = ("admin",)
