"""Open a text file of rows as a stream of UTF-8 lines, however it was compressed and encoded.

Gzip, UTF-16 and UTF-32 with a byte order mark, and lines that end in CR alone are undone here, block by block. A stream
that expands like no file of examples is refused.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from tunery.plugins.data.read.record import FileBroken

__all__ = ["HEAD", "check_expansion", "open_text"]

HEAD = 256 * 2**10
"""Bytes from which a file's kind is recognised."""

_BLOCK = 2**20
_EXPANDS, _UNCHECKED = 200, 64 * 2**20
"""How many times its size a file may expand to, beyond 64 MiB. Chat rows expand five to twenty times."""

_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

Blocks = Iterable[bytes]


def open_text(path: Path) -> tuple[bytes, io.BufferedReader]:
    """The head of a file's text, and a stream of all of it.

    The stream raises FileBroken where it cannot be unpacked or decoded.
    """
    blocks = _unpacked(path)
    head, blocks = _peek(blocks, 4)
    if encoding := next((name for mark, name in _ENCODINGS if head.startswith(mark)), None):
        blocks = _decoded(path, blocks, encoding)
    head, blocks = _peek(blocks, HEAD)
    if b"\r" in head and b"\n" not in head:
        blocks = _with_line_feeds(blocks)
        head = head.replace(b"\r", b"\n")
    return head, io.BufferedReader(_Stream(blocks), _BLOCK)


def check_expansion(path: Path, unpacked: int, packed: int) -> None:
    """Raise FileBroken where `packed` bytes expand to more than any examples would."""
    if unpacked > _UNCHECKED and unpacked > _EXPANDS * packed:
        raise FileBroken(
            path,
            f"unpacks to more than {_EXPANDS} times its size, which no examples do",
            "unpack it yourself and look at it",
        )


class _Stream(io.RawIOBase):
    """A raw stream over blocks."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        number = min(len(buffer), len(self._rest))
        buffer[:number] = self._rest[:number]
        self._rest = self._rest[number:]
        return number


def _peek(blocks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """At least `size` bytes, if there are as many, and all blocks including these."""
    head = b""
    while len(head) < size and (block := next(blocks, None)) is not None:
        head += block
    return head, chain([head], blocks)


def _unpacked(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            yield from _blocks(file.read)
            return
        unpacked = 0
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                for block in _blocks(stream.read):
                    unpacked += len(block)
                    check_expansion(path, unpacked, file.tell())
                    yield block
        except EOFError as error:
            raise FileBroken(path, "ends in the middle of what is gzipped", "copy it again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise FileBroken(path, f"is damaged where it is gzipped ({error})", "copy it again") from error


def _blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while block := read(_BLOCK):
        yield block


def _decoded(path: Path, blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in blocks:
            yield decoder.decode(block).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise FileBroken(
            path, f"begins as {encoding.upper()} and is not ({error.args[-1]})", "save it as UTF-8"
        ) from error


def _with_line_feeds(blocks: Iterator[bytes]) -> Iterator[bytes]:
    return (block.replace(b"\r", b"\n") for block in blocks)
