"""Examine the file systems under the home: room, kind, and who may read and write them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tunery.gateway.doctor.finding import Examined, Finding, fail, ok, warn
from tunery.registry.home import Home

__all__ = ["check_disks", "check_file_system", "check_permissions", "file_system_of"]

_LITTLE, _NOTHING = 1 << 30, 64 << 20
"""Bytes that are little, and that are as good as nothing."""
_SHARE = 0.05
_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs", "virtiofs"}
)
_MEMORY = frozenset({"ramfs", "tmpfs"})


def check_disks(examined: Examined) -> Iterator[Finding]:
    """Room and inodes of each disk that the home's folders are on."""
    home, seen = examined.home, set()
    for folder in (home.root, home.blobs, home.staging, home.bases, home.packed, home.jobs):
        place = _existing(folder)
        device = place.stat().st_dev
        if device not in seen:
            seen.add(device)
            yield _room(place)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _room(folder: Path) -> Finding:
    disk = os.statvfs(folder)
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    inodes = f", {disk.f_favail} inodes" if disk.f_files else ""
    found = f"{folder}: {free / 1e9:.1f} GB of {total / 1e9:.1f} GB free{inodes}"
    advice = "free some space, for example with tunery adapters gc, or enlarge the disk"
    if disk.f_flag & os.ST_RDONLY:
        return fail("disk", f"{folder} is mounted read-only", "mount it so that it can be written")
    if free < _NOTHING or (disk.f_files and disk.f_favail < 1000):
        return fail("disk", found, advice)
    if free < _LITTLE or free < _SHARE * total or (disk.f_files and disk.f_favail < _SHARE * disk.f_files):
        return warn("disk", found, advice)
    return ok("disk", found)


def check_file_system(examined: Examined) -> Iterator[Finding]:
    """Whether SQLite can rely on the database's file system: locks and shared memory do not work over a network."""
    kind = file_system_of(_existing(examined.home.root))
    if kind in _NETWORK or kind.startswith("fuse.sshfs"):
        yield fail(
            "file system",
            f"{examined.home.root} is on {kind}, which is shared over a network",
            "move TUNERY_HOME to a local disk: SQLite may damage the database there; blobs/ alone may stay",
        )
    elif kind in _MEMORY:
        yield warn("file system", f"{examined.home.root} is on {kind}", "it is gone after a restart of the machine")
    else:
        yield ok("file system", kind or "cannot be told on this system")


def file_system_of(path: Path, *, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that a path is on; empty where that cannot be told."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    resolved, best, kind = path.resolve(), -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        # The last of several mounts at one place hides the others.
        if resolved.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def check_permissions(examined: Examined) -> Iterator[Finding]:
    """Whether this user may write to the home, and others may read the keys and prompts in it."""
    home = examined.home
    if not home.root.exists():
        yield ok("permissions", f"{home.root} is made by the first command that needs it")
        return
    if not os.access(home.root, os.R_OK | os.W_OK | os.X_OK):
        yield fail(
            "permissions",
            f"this user may not write to {home.root}",
            f"chown it to the user who runs Tunery ({os.geteuid()})",
        )
        return
    mode = stat.S_IMODE(home.root.stat().st_mode)
    foreign = [path.name for path in (home.root, home.database, home.blobs) if _is_anothers(path)]
    if mode & stat.S_IWOTH:
        yield fail("permissions", f"everybody on this machine may write to {home.root}", f"chmod 700 {home.root}")
    elif foreign:
        yield warn("permissions", f"{', '.join(foreign)}: another user's", "run all of Tunery as one user")
    elif mode & stat.S_IXOTH and (open_files := _readable_by_all(home)):
        yield warn(
            "permissions", f"everybody on this machine may read {', '.join(open_files)}", f"chmod 700 {home.root}"
        )
    else:
        yield ok("permissions", f"{home.root} has mode {mode:o}")


def _is_anothers(path: Path) -> bool:
    try:
        return os.geteuid() not in (0, path.stat().st_uid)
    except OSError:
        return False


def _readable_by_all(home: Home) -> list[str]:
    paths = (home.database, home.root / "config.toml", home.blobs)
    return [path.name for path in paths if path.exists() and stat.S_IMODE(path.stat().st_mode) & stat.S_IROTH]
