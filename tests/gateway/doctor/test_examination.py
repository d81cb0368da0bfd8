"""What the doctor says of homes that are sound, damaged, locked, readable by all, or not there; and that it touches
nothing."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.registry.conftest import Publish, base, publish
from tests.small_disk import fill_disk, mounted_disk
from tunery.gateway.doctor import database, disks, machine, server, software, stored
from tunery.gateway.doctor.examination import CHECKS, examine
from tunery.gateway.doctor.finding import Examined, Finding
from tunery.registry.configuration.settings import ServeSettings, Settings
from tunery.registry.home import Home
from tunery.registry.registry import Registry

__all__ = ["base", "publish"]


def examined(home: Home, *, now: float | None = None, deep: bool = False, port: int = 0) -> Examined:
    settings = Settings(serve=ServeSettings(port=port))
    return Examined(home=home, settings=settings, now=time.time() if now is None else now, deep=deep)


def states(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.check: finding.state for finding in findings}


def listing(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def test_a_sound_home_has_no_failure_and_nothing_is_changed(registry: Registry, publish: Publish) -> None:
    publish()
    registry.home.root.chmod(0o700)
    (Path(registry.bases()[0].path) / "config.json").write_text("{}")
    for _ in range(2):
        before = listing(registry.home.root)
        findings = list(examine(registry.home))
        assert listing(registry.home.root) == before
        assert [finding for finding in findings if finding.state == "fail"] == []
        assert {"database", "blobs", "bases", "keys", "clock", "disk", "processor", "gpu", "libraries"} <= {
            finding.check for finding in findings
        }
        registry.close()


def test_no_home_is_made(tmp_path: Path) -> None:
    findings = list(examine(Home(tmp_path / "nowhere")))
    assert not (tmp_path / "nowhere").exists()
    assert not any(finding.state == "fail" for finding in findings)
    assert states(iter(findings))["database"] == "warn"


@pytest.mark.parametrize("damage", ["garbage", "empty", "short", "page", "folder", "old", "new", "nothing"])
def test_a_damaged_database_is_a_line_of_the_report(registry: Registry, publish: Publish, damage: str) -> None:
    publish()
    registry.close()
    path = registry.home.database
    whole = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(os.urandom(5000))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "short":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "page":
        path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "nothing":
        path.unlink()
    else:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE alembic_version SET version_num = ?", ("0003" if damage == "old" else "9999",))
    found = list(examine(registry.home))
    wanted = {"old": ("migrations", "warn"), "new": ("migrations", "fail")}.get(damage, ("database", "fail"))
    assert wanted in {(finding.check, finding.state) for finding in found}
    assert all(finding.advice for finding in found if finding.state != "ok")


def test_missing_and_damaged_blobs_are_counted(registry: Registry, publish: Publish) -> None:
    weights = registry.files(publish())["adapter_model.safetensors"]
    whole = weights.read_bytes()
    assert states(stored.check_blobs(examined(registry.home))) == {"blobs": "ok"}
    weights.write_bytes(b"x" + whole[1:])
    (finding,) = stored.check_blobs(examined(registry.home))
    assert (finding.state, weights.name[:12] in finding.found) == ("fail", True)
    weights.unlink()
    (finding,) = stored.check_blobs(examined(registry.home, deep=True))
    assert (finding.state, "1 of 2 are missing" in finding.found) == ("fail", True)


def test_what_dead_processes_left_is_told_from_what_is_in_use(registry: Registry) -> None:
    later = time.time() + 7200
    with registry.blobs.lease():
        assert states(stored.check_staging(examined(registry.home, now=later))) == {"staging": "ok"}
    (registry.home.staging / "publish-dead").mkdir()
    (registry.home.root / "restoring-1").mkdir()
    assert states(stored.check_staging(examined(registry.home))) == {"staging": "ok", "restore": "warn"}
    assert states(stored.check_staging(examined(registry.home, now=later)))["staging"] == "warn"


def test_a_base_without_its_files_says_how_to_add_it_again(registry: Registry, publish: Publish) -> None:
    publish()
    (finding,) = stored.check_bases(examined(registry.home))
    assert (finding.state, finding.advice) == ("fail", "tunery bases add tiny")


def test_a_writer_that_holds_the_lock_is_named(registry: Registry, tmp_path: Path) -> None:
    assert states(database.check_lock(examined(registry.home))) == {"lock": "ok"}
    script = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN IMMEDIATE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(registry.home.database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        (finding,) = database.check_lock(examined(registry.home))
        assert writer.stdin is not None
        writer.stdin.close()
    assert (finding.state, f"process {writer.pid} " in finding.found) == ("warn", True)


def test_keys_that_end_soon_and_servers_that_nobody_could_use(registry: Registry) -> None:
    assert states(database.check_keys(examined(registry.home))) == {"keys": "ok"}
    key, _ = registry.keys.create(tenant="acme", scopes=("infer",), actor="test", seconds=60)
    (finding,) = database.check_keys(examined(registry.home))
    assert (finding.state, key.id in finding.found) == ("warn", True)
    registry.keys.revoke(key.id)
    assert states(database.check_keys(examined(registry.home))) == {"keys": "fail"}


def test_a_clock_that_was_set_back_is_noticed(registry: Registry, publish: Publish) -> None:
    publish()
    now = time.time()
    assert states(database.check_clock(examined(registry.home, now=now + 1))) == {"clock": "ok"}
    assert states(database.check_clock(examined(registry.home, now=now - 7200))) == {"clock": "warn"}
    assert states(database.check_clock(examined(registry.home, now=0.0))) == {"clock": "fail"}


def test_homes_that_others_may_read_or_write(registry: Registry) -> None:
    root = registry.home.root
    found = {}
    for mode in (0o700, 0o750, 0o755, 0o777):
        root.chmod(mode)
        found[mode] = states(disks.check_permissions(examined(registry.home)))["permissions"]
    root.chmod(0o700)
    assert found == {0o700: "ok", 0o750: "ok", 0o755: "warn", 0o777: "fail"}


def test_a_full_disk_fails_and_a_small_one_warns(tmp_path: Path) -> None:
    with mounted_disk(tmp_path / "disk", "200m") as disk:
        home = Home(disk / "home")
        assert states(disks.check_disks(examined(home))) == {"disk": "warn"}
        assert states(disks.check_file_system(examined(home))) == {"file system": "warn"}
    with mounted_disk(tmp_path / "full", "1m") as disk:
        fill_disk(disk)
        assert states(disks.check_disks(examined(Home(disk)))) == {"disk": "fail"}


def test_file_systems_are_told_by_the_last_mount_above_a_path(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"40 22 0:40 / {tmp_path} rw shared:1 - tmpfs tmpfs rw\n"
        f"41 22 0:41 / {tmp_path} rw - nfs4 host:/x rw\n"
        f"42 22 0:42 / {tmp_path}/a\\040b rw - cifs //host/x rw\n"
    )
    assert disks.file_system_of(tmp_path / "home", mounts=mounts) == "nfs4"
    assert disks.file_system_of(tmp_path / "a b" / "home", mounts=mounts) == "cifs"
    assert disks.file_system_of(Path("/"), mounts=mounts) == "ext4"
    assert disks.file_system_of(Path("/"), mounts=tmp_path / "none") == ""


@contextmanager
def answering(body: bytes, status: int = 200) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running.server_port
        running.shutdown()
        thread.join()


def test_ports_are_free_served_or_taken_by_somebody(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    assert states(server.check_server(examined(home, port=free))) == {"port": "ok"}
    with answering(b'{"status": "ready", "engine": "ok"}') as port:
        assert states(server.check_server(examined(home, port=port))) == {"server": "ok"}
    with answering(b'{"status": "not ready", "engine": "starting"}', 503) as port:
        (finding,) = server.check_server(examined(home, port=port))
        assert (finding.state, "engine: starting" in finding.found) == ("warn", True)
    with answering(b"hello") as port:
        (finding,) = server.check_server(examined(home, port=port))
        assert (finding.check, finding.state, f"({os.getpid()})" in finding.found) == ("port", "fail", True)


def test_settings_with_problems_are_reported_and_the_rest_is_examined(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[serve]\nport = 'x'\nprot = 1\n")
    found = list(examine(Home(tmp_path)))
    assert (found[0].check, found[0].state) == ("configuration", "fail")
    assert "serve.port" in found[0].found
    assert "serve.prot" in found[0].found
    assert len(found) > len(CHECKS) / 2


def test_a_check_that_breaks_is_a_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("tunery.gateway.doctor.disks._existing", broken)
    found = [finding for finding in examine(Home(tmp_path)) if finding.check == "disks"]
    assert [(finding.state, finding.found) for finding in found] == [
        ("warn", "could not be examined: Input/output error")
    ]


def test_libraries_are_compared_with_those_that_are_tested() -> None:
    constraints = dict(
        line.split()[0].split("==") for line in Path("constraints.txt").read_text().splitlines() if "==" in line
    )
    known = {name.lower().replace("_", "-"): version for name, version in constraints.items()}
    for line in software.TESTED.read_text().split():
        name, _, version = line.partition("==")
        assert known[name.lower().replace("_", "-")] == version, "update gateway/doctor/tested.txt"
    assert states(software.check_versions(examined(Home(Path("/nowhere"))))) == {"libraries": "ok"}


def test_libraries_of_another_generation_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tested.txt").write_text("click==7.0\n")
    monkeypatch.setattr(software, "TESTED", tmp_path / "tested.txt")
    (finding,) = software.check_versions(examined(Home(tmp_path)))
    assert (finding.state, "click" in finding.found) == ("warn", True)
    monkeypatch.setattr(software, "requires", lambda name: ["click>=99", "nosuch", 'gone; extra == "x"'])
    (fails,) = software.check_versions(examined(Home(tmp_path)))
    assert fails.state == "fail"
    assert "nosuch is missing" in fails.found
    assert "click" in fails.found


def test_a_driver_without_torch_for_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_driver", lambda: "550.1")
    monkeypatch.setattr(machine, "_torch_cuda", lambda: None)
    assert states(machine.check_gpu(examined(Home(tmp_path)))) == {"gpu": "warn"}
    monkeypatch.setattr(machine, "_driver", lambda: "")
    settings = Settings(serve=ServeSettings(device="cuda:0"))
    given = Examined(home=Home(tmp_path), settings=settings, now=0.0)
    assert states(machine.check_gpu(given)) == {"gpu": "fail"}


@pytest.mark.slow
def test_deep_loads_torch_and_the_kernels(tmp_path: Path) -> None:
    found = list(software.check_torch(examined(Home(tmp_path), deep=True)))
    assert found[0].check == "torch"
    assert {finding.check for finding in found} >= {"torch", "kernels"}
    assert not any(finding.state == "fail" for finding in found)
