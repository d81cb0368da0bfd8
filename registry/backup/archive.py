"""One tar archive, plain or gzipped: the manifest first, then the objects in its order, and nothing else.

Members are read one header at a time and must be exactly what the manifest announces, so that links, devices, sparse
files and extended headers are refused before anything of theirs is read. The `tarfile` module follows such headers by
itself; of it only a header's layout is used.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from tunery.registry.backup.manifest import MANIFEST, MAX_MANIFEST, BackupManifest, object_name, read_manifest
from tunery.registry.errors import InvalidInput, StorageFailed

__all__ = ["SUFFIXES", "ArchiveSource", "write_archive"]

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_BLOCK = 512
_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b"


def write_archive(descriptor: int, name: str, members: Iterable[tuple[str, int, Iterable[bytes]]]) -> None:
    """Write members, each a name, a size and its bytes, to a new file and sync it; `name` says whether it is gzipped.

    Raise StorageFailed where a member's bytes are not as many as announced.
    """
    with os.fdopen(descriptor, "wb") as file:
        packed = gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) if not name.endswith(".tar") else None
        stream = cast(BinaryIO, packed or file)
        for member, size, chunks in members:
            _write_member(stream, member, size, chunks)
        stream.write(bytes(2 * _BLOCK))
        if packed is not None:
            packed.close()
        file.flush()
        os.fsync(file.fileno())


def _write_member(stream: BinaryIO, name: str, size: int, chunks: Iterable[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    stream.write(info.tobuf(tarfile.GNU_FORMAT))
    left = size
    for chunk in chunks:
        left -= len(chunk)
        stream.write(chunk)
    if left:
        raise StorageFailed(f"{name} changed while it was copied; nothing was written: back up again")
    stream.write(bytes(-size % _BLOCK))


class ArchiveSource:
    """An archive to read from its beginning to its end, once."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        with path.open("rb") as file:
            is_gzip = file.read(2) == _GZIP
        self._stream = cast(BinaryIO, gzip.open(path, "rb") if is_gzip else path.open("rb"))  # noqa: SIM115 - closed by __exit__
        try:
            self.manifest: BackupManifest = read_manifest(self._manifest())
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def objects(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The sha256 that each object should have, and its bytes, which must be read to their end before the next."""
        for sha256, entry in self.manifest.objects.items():
            name, size = self._header()
            if (name, size) != (object_name(sha256), entry.size):
                raise self._refused(f"{name[:80]!r} with {size} bytes is not what its manifest announces")
            yield sha256, self._bytes(size)

    def _manifest(self) -> bytes:
        name, size = self._header()
        if name != MANIFEST or size > MAX_MANIFEST:
            raise self._refused(f"it does not begin with {MANIFEST}")
        return b"".join(self._bytes(size))

    def _header(self) -> tuple[str, int]:
        """The next member, which must be a plain file."""
        try:
            info = tarfile.TarInfo.frombuf(self._read(_BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._refused(f"it is no tar archive, or ends too early ({error})") from error
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.size < 0:
            raise self._refused(f"{info.name[:80]!r} is not a plain file")
        return info.name, info.size

    def _bytes(self, size: int) -> Iterator[bytes]:
        left = size
        while left > 0:
            chunk = self._read(min(_CHUNK, left))
            left -= len(chunk)
            yield chunk
        self._read(-size % _BLOCK)

    def _read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        try:
            data = self._stream.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._refused(f"it is damaged ({error})") from error
        if len(data) != size:
            raise self._refused("it ends too early")
        return data

    def _refused(self, why: str) -> InvalidInput:
        return InvalidInput(f"{self._name} cannot be restored: {why}", code="backup_refused")
