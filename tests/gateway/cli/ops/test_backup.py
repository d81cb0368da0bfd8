"""`tunery backup` and `tunery restore`, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.registry.conftest import Publish, base, publish
from tunery.gateway.cli import main
from tunery.registry.home import Home
from tunery.registry.registry import Registry

__all__ = ["base", "publish"]


def run(*arguments: str) -> int:
    """The exit code of a command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_from_one_home_to_another(
    registry: Registry,
    publish: Publish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    version = publish(alias="production")
    monkeypatch.setenv("TUNERY_HOME", str(registry.home.root))
    target = str(tmp_path / "b.tar.gz")
    assert run("backup", target) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{target}: 3 files")
    assert "the base tiny is not in TUNERY_HOME" in err
    assert run("backup", target) == 4
    monkeypatch.setenv("TUNERY_HOME", str(tmp_path / "other"))
    assert run("restore", target, "--check") == 0
    assert not (tmp_path / "other").exists()
    assert run("restore", target, "--json") == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["files"] == 3
    assert run("restore", target) == 4
    assert "--force" in capsys.readouterr().err
    with Registry.open(Home(tmp_path / "other")) as restored:
        assert restored.resolve("acme/support") == version


def test_an_incomplete_backup_is_made_and_ends_with_7(
    registry: Registry,
    publish: Publish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry.files(publish())["adapter_model.safetensors"].unlink()
    monkeypatch.setenv("TUNERY_HOME", str(registry.home.root))
    assert run("backup", str(tmp_path / "b")) == 7
    assert "acme/support@1: adapter_model.safetensors is missing" in capsys.readouterr().err
    assert run("restore", str(tmp_path / "b"), "--check") == 0
    assert "made without acme/support@1: adapter_model.safetensors is missing" in capsys.readouterr().err
