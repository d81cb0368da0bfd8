"""Collections beside publications, and on a disk that is full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry.artifacts import make_adapter, make_base
from tests.registry.conftest import Publish
from tests.registry.versions.test_publish import arguments
from tests.small_disk import fill_disk, mounted_disk
from tunery.registry import Base, NewVersion
from tunery.registry.errors import StorageFailed
from tunery.registry.home import Home
from tunery.registry.hub.incoming import Destination, import_folder
from tunery.registry.registry import Registry
from tunery.registry.storage.leases import staged

IMPORTER = """
import sys
from pathlib import Path
import msgspec
from tunery.registry import Base
from tunery.registry.home import Home
from tunery.registry.hub.incoming import Destination, import_folder
from tunery.registry.registry import Registry

home, folder, base, rounds, _ = sys.argv[1:]
destination = Destination(adapter="acme/support", base=msgspec.json.decode(base, type=Base), actor="i")
with Registry.open(Home(Path(home))) as registry:
    for _ in range(int(rounds)):
        import_folder(registry, Path(folder), destination)
"""

LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
from tunery.gateway.cli import main
main()
"""


def test_what_is_being_published_is_safe_from_a_collection_at_every_step(
    home: Home, registry: Registry, base: Base, tmp_path: Path
) -> None:
    seen: list[str] = []
    with Registry.open(home) as other:

        def collect(step: str) -> None:
            # From there on the publisher holds the database, and a collection waits for it.
            if "insert" not in seen:
                seen.append(step)
                if step != "insert":
                    other.collect(older_than=-1)

        folder = make_adapter(tmp_path / "a")
        version = registry.publish(
            NewVersion(adapter="a/b", folder=folder, base=base, method="lora", manifest={}, metrics={}, actor="t"),
            watch=collect,
        )
    assert seen == [
        "check",
        "store adapter_config.json",
        "store adapter_model.safetensors",
        "verify",
        "begin",
        "insert",
    ]
    assert registry.verify() == []
    assert version.number == 1


@pytest.mark.slow
def test_imports_beside_collections_all_succeed(home: Home, registry: Registry, base: Base, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                IMPORTER,
                *arguments(home, make_adapter(tmp_path / str(n), seed=n), base, rounds=10),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    collections = 0
    while any(process.poll() is None for process in processes):
        registry.collect(older_than=-1)
        collections += 1
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 2
    assert collections > 3
    assert len(registry.versions("acme/support")) == 20
    assert registry.verify() == []
    assert list(home.staging.iterdir()) == []


def test_a_staging_folder_is_left_alone_while_somebody_holds_it(home: Home, registry: Registry) -> None:
    with staged(home.staging, "base") as held:
        (held / "part").write_bytes(b"x" * 100)
        assert registry.collect(older_than=-1).staged == 0
        assert (held / "part").exists()
        shutil.copytree(held, home.staging / "left")
        collected = registry.collect(older_than=-1)
        assert (collected.staged, collected.bytes) == (1, 100)
    assert list(home.staging.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own."""
    with mounted_disk(tmp_path / "small", "4m") as place:
        yield place


def tunery(home: Home, *arguments: str, limited: bool = False) -> subprocess.CompletedProcess[str]:
    command = ["-c", LIMITED] if limited else ["-m", "tunery.gateway.cli"]
    environment = os.environ | {"TUNERY_HOME": str(home.root)}
    return subprocess.run(
        [sys.executable, *command, *arguments], capture_output=True, text=True, env=environment, timeout=120
    )


def populate(home: Home, folder: Path, *, keep_open: bool) -> Registry:
    """A version that is needed, and the files of one that was removed; the database is closed
    unless it is to be kept open."""
    registry = Registry.open(home)
    base = registry.add_base(make_base(folder / "base"))
    for seed in (1, 2):
        import_folder(
            registry,
            make_adapter(folder / f"a{seed}", seed=seed, rank=600),
            Destination(adapter="a/b", base=base, actor="t"),
        )
    registry.remove("a/b@2", actor="t")
    if not keep_open:
        registry.close()
    return registry


def check_freed(home: Home, registry: Registry, *, limited: bool) -> None:
    """Every command says that the disk is full; the one that frees space does so, and then the others work."""
    loose = home.blobs.glob("??/*")
    before = sum(path.stat().st_size for path in loose)
    done = tunery(home, "adapters", "gc", "--older-than", "0", limited=limited)
    assert (done.returncode, done.stderr) == (0, "")
    assert ": 1 files, 0 leftovers" in done.stdout
    assert sum(path.stat().st_size for path in home.blobs.glob("??/*")) < before


@pytest.mark.slow
@pytest.mark.parametrize("keep_open", [False, True])
def test_a_full_disk_is_freed_by_a_collection(small_disk: Path, tmp_path: Path, keep_open: bool) -> None:
    home = Home(small_disk / "home")
    registry = populate(home, tmp_path, keep_open=keep_open)
    fill_disk(small_disk)
    if not keep_open:
        refused = tunery(home, "adapters", "list")
        assert refused.returncode == 7
        assert "disk is full" in refused.stderr
        assert "tunery adapters gc" in refused.stderr
    check_freed(home, registry, limited=False)
    listed = tunery(home, "adapters", "list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "a/b@1" in listed.stdout
    assert tunery(home, "adapters", "verify").returncode == 0
    with Registry.open(home) as again:
        assert again.move_alias("a/b", "production", 1, actor="t").after == 1
    registry.close()


@pytest.mark.slow
@pytest.mark.parametrize("keep_open", [False, True])
def test_a_version_can_be_removed_from_a_full_disk(small_disk: Path, tmp_path: Path, keep_open: bool) -> None:
    home = Home(small_disk / "home")
    registry = populate(home, tmp_path, keep_open=keep_open)
    fill_disk(small_disk)
    done = tunery(home, "adapters", "rm", "a/b@1")
    assert (done.returncode, done.stderr) == (0, "")
    assert not home.reserve.exists()
    done = tunery(home, "adapters", "gc", "--older-than", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert list(home.blobs.glob("??/*")) == []
    with Registry.open(home) as again:
        assert again.versions() == []
    assert home.reserve.stat().st_size > 2**17
    registry.close()


@pytest.mark.slow
def test_so_it_is_where_a_process_may_write_no_more(home: Home, tmp_path: Path) -> None:
    registry = populate(home, tmp_path, keep_open=False)
    refused = tunery(home, "adapters", "list", limited=True)
    assert refused.returncode == 7
    assert "disk is full" in refused.stderr
    check_freed(home, registry, limited=True)
    assert tunery(home, "adapters", "verify").returncode == 0


def test_publishing_on_a_full_disk_says_so_and_changes_nothing(small_disk: Path, tmp_path: Path) -> None:
    home = Home(small_disk / "home")
    registry = populate(home, tmp_path, keep_open=True)
    before = registry.versions()
    folder = make_adapter(tmp_path / "more", seed=9, rank=400)
    fill_disk(small_disk)
    with pytest.raises(StorageFailed, match=r"full|No space left") as caught:
        import_folder(registry, folder, Destination(adapter="a/b", base=registry.bases()[0], actor="t"))
    assert caught.value.code == "disk_full"
    assert registry.versions() == before
    assert registry.verify() == []
    registry.close()


def test_a_path_that_cannot_be_opened_is_reported_with_its_cause(home: Home) -> None:
    home.ensure()
    home.database.mkdir()
    with pytest.raises(StorageFailed, match=r"registry\.db cannot be opened \(unable to open database file\)"):
        Registry.open(home)


def test_a_path_with_signs_that_mean_something_elsewhere(tmp_path: Path, publish: Publish) -> None:
    for name in ("a%41b", "100%", "what?", "a#b", "%(here)s"):
        with Registry.open(Home(tmp_path / name)) as registry:
            assert registry.versions() == []
        assert (tmp_path / name / "registry.db").is_file()


@pytest.mark.slow
def test_code_under_a_folder_with_a_percent_sign_migrates(tmp_path: Path) -> None:
    import tunery.gateway
    import tunery.plugins
    import tunery.registry

    package = tmp_path / "100% mine" / "tunery"
    package.mkdir(parents=True)
    for room in (tunery.registry, tunery.plugins, tunery.gateway):
        source = Path(next(iter(room.__path__)))
        target = package / source.resolve().name
        if room is tunery.registry:
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.symlink_to(source.resolve())
    code = "import sys; from pathlib import Path; from tunery.registry.home import Home\n"
    code += "from tunery.registry.registry import Registry\nRegistry.open(Home(Path(sys.argv[1]))).close()\n"
    code += "import tunery.registry; print(tunery.registry.__file__)"
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "home")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    assert "100% mine" in ran.stdout
