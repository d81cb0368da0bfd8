"""Bases whose files have changed, moved or gone."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.plugins.bases.edit_base import edit_json
from tunery.plugins.bases.resolve import base_digest, resolve_base
from tunery.plugins.manager import Plugins
from tunery.registry.base_files import require_sound
from tunery.registry.errors import NotFound, StorageFailed
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.storage.digest import file_digest


def _scribble(path: Path, *, keep_times: bool) -> None:
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(-2048, os.SEEK_END)
        file.write(bytes(2048))
    if keep_times:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_base_is_taken_again_and_refused_where_it_cannot_be(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path, name: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_base_folder, source)
    base = resolve_base(str(source), registry=registry, plugins=plugins, name="tiny")
    messages: list[str] = []
    for keep_times in (False, True):
        if name == "config.json":
            edit_json(Path(base.path), vocab_size=7)
        else:
            _scribble(Path(base.path) / name, keep_times=keep_times)
        assert resolve_base("tiny", registry=registry, plugins=plugins, say=messages.append) == base
        assert base_digest(Path(base.path)) == base.digest
        assert messages.count(f"the base tiny is damaged ({name})") == 1 + keep_times
    _scribble(Path(base.path) / "model.safetensors", keep_times=True)
    shutil.rmtree(source)
    with pytest.raises(StorageFailed, match=r"damaged \(model.safetensors") as caught:
        resolve_base("tiny", registry=registry, plugins=plugins)
    assert caught.value.code == "base_damaged"


def test_a_job_does_not_train_on_a_damaged_base(registry: Registry, plugins: Plugins, tiny_base_folder: Path) -> None:
    base = resolve_base(str(tiny_base_folder), registry=registry, plugins=plugins, name="tiny")
    require_sound(base, registry.home)
    _scribble(Path(base.path) / "model.safetensors", keep_times=True)
    with pytest.raises(StorageFailed, match=r"damaged \(model\.safetensors\): add it again") as caught:
        require_sound(base, registry.home)
    assert caught.value.code == "base_damaged"
    assert resolve_base("tiny", registry=registry, plugins=plugins) == base
    require_sound(base, registry.home)


def test_a_base_that_looks_the_same_is_not_read_again(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunery.registry import base_files

    monkeypatch.setattr(base_files, "SMALL", 0)
    base = resolve_base(str(tiny_base_folder), registry=registry, plugins=plugins, name="tiny")
    read: list[str] = []

    def noted(path: Path) -> tuple[str, int]:
        read.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(base_files, "file_digest", noted)
    assert resolve_base("tiny", registry=registry, plugins=plugins) == base
    assert read == []
    os.utime(Path(base.path) / "model.safetensors")
    assert resolve_base("tiny", registry=registry, plugins=plugins) == base
    assert read == ["model.safetensors"]
    assert resolve_base("tiny", registry=registry, plugins=plugins) == base
    assert read == ["model.safetensors"]


def test_a_moved_or_copied_home_uses_its_own_bases(
    home: Home, registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path
) -> None:
    base = resolve_base(str(tiny_base_folder), registry=registry, plugins=plugins, name="tiny")
    registry.close()
    for place in ("copy", "with %41 and ?x=1#y"):
        shutil.copytree(home.root, tmp_path / place)
        with Registry.open(Home(tmp_path / place)) as there:
            resolved = resolve_base("tiny", registry=there, plugins=plugins)
            assert Path(resolved.path) == tmp_path / place / "bases" / base.digest
            assert there.bases() == [resolved]
    with sqlite3.connect(home.database) as database:  # as earlier releases wrote it
        database.execute("UPDATE bases SET path = ?", [base.path])
    database.close()
    home.root.rename(tmp_path / "moved")
    with Registry.open(Home(tmp_path / "moved")) as there:
        assert Path(there.base("tiny").path).is_relative_to(tmp_path / "moved")


def test_a_base_of_a_folder_that_is_not_on_this_machine_is_found_by_its_content(
    home: Home, registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base_folder, tmp_path / "there" / "model")
    base = resolve_base(str(tmp_path / "there" / "model"), registry=registry, plugins=plugins, name="tiny")
    (tmp_path / "there").rename(tmp_path / "here")
    assert resolve_base("tiny", registry=registry, plugins=plugins) == base
    with pytest.raises(NotFound, match="'tiny' was imported from a folder of that name"):
        resolve_base("/data/elsewhere/model", registry=registry, plugins=plugins)
    shutil.rmtree(base.path)
    with pytest.raises(NotFound, match="add the same model from where it is now"):
        resolve_base("tiny", registry=registry, plugins=plugins)
    resolved = resolve_base(str(tmp_path / "here" / "model"), registry=registry, plugins=plugins)
    assert (resolved.name, resolved.digest) == ("tiny", base.digest)
    assert base_digest(Path(resolved.path)) == base.digest
