"""Requests as bytes, for what no client would send."""

from __future__ import annotations

import asyncio

__all__ = ["exchange", "request", "statuses"]

SECONDS = 60


def request(method: str, path: str, *headers: str, body: bytes = b"", host: str = "localhost") -> bytes:
    """A request on a connection of its own, with the length of its body if it has one."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", "connection: close", *headers]
    lines += [f"content-length: {len(body)}"] if body else []
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


async def exchange(url: str, data: bytes) -> bytes:
    """Everything that the server answers to `data` until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    received = b""
    try:
        async with asyncio.timeout(SECONDS):
            writer.write(data)
            while piece := await reader.read(1 << 16):
                received += piece
    except ConnectionError:
        """It did not wait for the rest."""
    finally:
        writer.close()
    return received


def statuses(answer: bytes) -> list[int]:
    """The statuses of the responses in an answer."""
    return [int(line.split()[1]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
