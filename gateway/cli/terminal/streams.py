"""Make standard output and error take any text, whatever the locale: what an encoding lacks is
escaped as JSON escapes it.

`→` under Latin-1 is `\\u2192`, so JSON stays JSON and no command ends in UnicodeEncodeError after its work is done.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from tunery.registry.errors import InvalidInput

__all__ = ["ascii_text", "check_arguments", "is_utf8", "take_any_text"]

_ESCAPED, _ASCII = "tunery_escape", "tunery_ascii"


def take_any_text() -> None:
    """Escape on stdout and stderr what their encodings do not have."""
    codecs.register_error(_ESCAPED, _escape)
    codecs.register(_find_codec)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Under its own name click takes ASCII for a mistake, writes UTF-8 past this stream, and
            # what is printed changes its order.
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if is_ascii else stream.encoding, errors=_ESCAPED)


def is_utf8(stream: object) -> bool:
    """Whether a stream writes UTF-8, or is no file at all."""
    encoding = getattr(stream, "encoding", None)
    return encoding is None or codecs.lookup(encoding).name == "utf-8"


def ascii_text(json_text: str) -> str:
    """JSON with everything beyond ASCII escaped; equal to what it was for whoever parses it."""
    return json_text.encode("ascii", _ESCAPED).decode("ascii")


def check_arguments(arguments: Iterable[str]) -> None:
    """Raise InvalidInput for what this locale cannot read: arguments, and folders, that could not
    be recorded as text later."""
    for text in (*arguments, *_folders()):
        if any("\ud800" <= character <= "\udfff" for character in text):
            shown = os.fsencode(text).decode("utf-8", "replace")
            raise InvalidInput(
                f"{shown!r} is no text in this locale ({sys.getfilesystemencoding()}); set PYTHONUTF8=1 or LC_ALL=C.UTF-8, or rename it"
            )


def _folders() -> list[str]:
    try:
        here = str(Path.cwd())
    except OSError:
        here = ""
    return [here, os.environ.get("TUNERY_HOME") or os.environ.get("HOME", "")]


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_escaped, error.object[error.start : error.end])), error.end


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _find_codec(name: str) -> codecs.CodecInfo | None:
    if name != _ASCII:
        return None
    ascii_codec = codecs.lookup("ascii")
    return codecs.CodecInfo(
        ascii_codec.encode,
        ascii_codec.decode,
        streamreader=ascii_codec.streamreader,
        streamwriter=ascii_codec.streamwriter,
        incrementalencoder=ascii_codec.incrementalencoder,
        incrementaldecoder=ascii_codec.incrementaldecoder,
        name=_ASCII,
    )
