"""Copy files with their digests, and give a finished file its name without replacing another."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tunery.registry.errors import StorageFailed, disk_code
from tunery.registry.storage.disk import sync

__all__ = ["chunks_of", "digest_of_first", "failing", "name_file", "write_new"]

_CHUNK = 1 << 20
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def chunks_of(path: Path, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file, or all that it has: one that is appended to has more by now."""
    with path.open("rb") as reader:
        while size > 0 and (chunk := reader.read(min(_CHUNK, size))):
            size -= len(chunk)
            yield chunk


def digest_of_first(path: Path, size: int) -> str:
    """Hex sha256 of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    for chunk in chunks_of(path, size):
        digest.update(chunk)
    return digest.hexdigest()


def write_new(path: Path, chunks: Iterable[bytes], *, limit: int) -> tuple[str, int]:
    """Write a file that must not be there yet, up to one chunk beyond `limit`, and sync it; hex sha256 and size."""
    digest, size = hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as writer:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            if size > limit:
                break
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest(), size


def name_file(written: Path, path: Path) -> None:
    """Give a finished file its name; raise FileExistsError where that is taken."""
    try:
        path.hardlink_to(written)
        written.unlink()
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        written.rename(path)
    sync(path.parent)


@contextlib.contextmanager
def failing(path: Path, what: str, *, full: str) -> Iterator[None]:
    """Turn an OSError in the block into StorageFailed: `path` could not be `what`; `full` is what a full disk is called."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageFailed):
            raise
        code = disk_code(error)
        reason = full if code == "disk_full" else f"{error.filename or path}: {error.strerror}"
        raise StorageFailed(f"{path} could not be {what}: {reason}; nothing was changed", code=code) from error
