"""The files of a server's TLS: which they are, whether they can be served, and whether they have changed.

Granian ends the whole process on files that it cannot read, so a process of its own tries them first.
"""

from __future__ import annotations

import ssl
import subprocess
import sys
from pathlib import Path

import msgspec

from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import InvalidInput

__all__ = ["Stamp", "TlsFiles", "check_tls", "stamp_of", "tls_files"]

TRIAL_SECONDS = 60

Stamp = tuple[tuple[int, int, int], ...]
"""What identifies the files' contents without reading them: of each its inode, size and time."""


class TlsFiles(msgspec.Struct, frozen=True):
    """The certificate with its chain, its key, and the authorities whose clients are served (None: any client)."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def all(self) -> list[Path]:
        """Every file."""
        return [self.cert, self.key, *([self.client_ca] if self.client_ca else [])]


def tls_files(settings: ServeSettings) -> TlsFiles | None:
    """The files that the settings name, None where requests come by plain HTTP; raise InvalidInput for half of them."""
    if not settings.tls_cert and not settings.tls_key and not settings.tls_client_ca:
        return None
    if not settings.tls_cert or not settings.tls_key:
        raise InvalidInput("TLS needs both serve.tls_cert and serve.tls_key; set both, or neither", code="invalid_tls")
    client_ca = Path(settings.tls_client_ca).expanduser() if settings.tls_client_ca else None
    return TlsFiles(Path(settings.tls_cert).expanduser(), Path(settings.tls_key).expanduser(), client_ca)


def stamp_of(files: TlsFiles) -> Stamp | None:
    """The files as they are now; None while one is missing."""
    try:
        found = [path.stat() for path in files.all()]
    except OSError:
        return None
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in found)


def check_tls(files: TlsFiles) -> None:
    """Raise InvalidInput (`invalid_tls`), saying which file is wrong and how, unless they can be served."""
    for path in files.all():
        try:
            path.read_bytes()
        except OSError as error:
            raise _invalid(f"{path} cannot be read ({error.strerror})") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise _invalid(f"{files.cert} and {files.key} are no certificate with its key ({_reason(error)})") from error
    try:
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
    except ssl.SSLError as error:
        raise _invalid(f"{files.client_ca} has no certificates of authorities ({_reason(error)})") from error
    _try(files)


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password that only this server's user may read")


def _try(files: TlsFiles) -> None:
    """Serve with the files in another process, for a moment."""
    command = [sys.executable, "-m", "tunery.gateway.http_server", *map(str, files.all())]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Err" in line] or ["it gave no reason"]
        reason = lines[0].partition("value: ")[2] or lines[0]
        raise _invalid(f"the server cannot use {', '.join(map(str, files.all()))} ({reason})")


def _invalid(problem: str) -> InvalidInput:
    return InvalidInput(
        f"{problem}; set serve.tls_cert, serve.tls_key and serve.tls_client_ca to PEM files that fit",
        code="invalid_tls",
    )


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).replace("_", " ").lower()
