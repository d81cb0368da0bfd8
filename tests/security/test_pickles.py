"""Nothing is ever unpickled: no source does it, and a pickle in the place of each file that is read runs nothing."""

from __future__ import annotations

import ast
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import tunery.registry as registry_package
from tests.registry.artifacts import make_adapter
from tests.registry.conftest import base
from tunery.plugins.data.checks.runner import CheckOptions, check_data
from tunery.plugins.discovery import load_plugins
from tunery.registry import Base, NewVersion
from tunery.registry.errors import TuneryError
from tunery.registry.hub.incoming import Destination, import_folder
from tunery.registry.registry import Registry

__all__ = ["base"]

LOADERS = {
    "pickle": {"load", "loads", "Unpickler"},
    "dill": None, "cloudpickle": None, "joblib": None, "marshal": None, "shelve": None,
    "yaml": {"load", "unsafe_load", "full_load", "Loader"},
    "numpy": {"load"}, "np": {"load"},
    "pandas": {"read_pickle"},
}  # fmt: skip
"""What unpickles, by module; None for everything in it."""
WORDS = re.compile(
    r"\b(pickle|dill|cloudpickle|joblib|marshal|shelve|yaml|np\.load|numpy|pandas|torch\.load|allow_pickle|shell|eval|exec"
    r"|trust_remote_code|system|popen|__import__|unpack_archive|tarfile|zipfile)\b"
)


ROOT = Path(registry_package.__path__[0]).parent


def sources() -> list[Path]:
    return sorted(path for floor in ("registry", "plugins", "gateway") for path in (ROOT / floor).rglob("*.py"))


def calls(path: Path) -> list[tuple[int, str, ast.Call]]:
    """Line, dotted name and node of every call in a file."""
    text = path.read_text(encoding="utf-8")
    if not WORDS.search(text):
        return []
    tree = ast.parse(text)
    return [(node.lineno, ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_source_unpickles() -> None:
    files = sources()
    assert len(files) > 400
    for path in files:
        for line, name, node in calls(path):
            module, _, function = name.rpartition(".")
            where = f"{path}:{line}: {name}"
            if module in LOADERS:
                forbidden = LOADERS[module]
                assert forbidden is not None, where
                assert function not in forbidden, where
            keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
            if name == "torch.load":
                assert keywords.get("weights_only") == "True", where
            assert keywords.get("allow_pickle", "False") == "False", where
            assert keywords.get("trust_remote_code", "False") == "False", where
            assert keywords.get("shell", "False") == "False", where
            assert name not in ("eval", "exec", "os.system", "os.popen", "__import__"), where
            assert name not in ("shutil.unpack_archive", "tarfile.open", "zipfile.ZipFile"), where


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self._mark,)


@pytest.fixture
def bomb(tmp_path: Path) -> bytes:
    data = pickle.dumps(Bomb(tmp_path / "mark"), protocol=2)  # as torch writes them
    pickle.loads(data)  # it is one
    (tmp_path / "mark").unlink()
    return data


def as_torch_saves(bomb: bytes, path: Path) -> bytes:
    """The archive that torch.save writes, with that pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bomb)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path.read_bytes()


def test_adapters_in_pickles(registry: Registry, base: Base, bomb: bytes, tmp_path: Path) -> None:
    archive = as_torch_saves(bomb, tmp_path / "archive")
    destination = Destination(adapter="acme/support", base=base, actor="test")
    for number, (name, data) in enumerate(
        [
            ("adapter_model.safetensors", bomb), ("adapter_model.safetensors", archive), ("adapter_config.json", bomb),
            ("adapter_model.bin", bomb), ("optimizer.pt", archive), ("sub/state.PKL", bomb), ("tensors.npz", archive),
        ]
    ):  # fmt: skip
        folder = make_adapter(tmp_path / f"adapter-{number}")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        new = NewVersion(
            adapter="acme/support", folder=folder, base=base, method="lora", manifest={}, metrics={}, actor="t", alias=None
        )  # fmt: skip
        with pytest.raises(TuneryError):
            registry.publish(new)
        if name.startswith("adapter_") and not name.endswith(".bin"):
            with pytest.raises(TuneryError):
                import_folder(registry, folder, destination)
    assert not (tmp_path / "mark").exists()


def test_bases_in_pickles(registry: Registry, bomb: bytes, tmp_path: Path, tiny_base_folder: Path) -> None:
    from tunery.plugins.bases.resolve import resolve_base

    archive, plugins = as_torch_saves(bomb, tmp_path / "archive"), load_plugins()
    for number, (name, data) in enumerate(
        [("model.safetensors", bomb), ("model.safetensors", archive), ("config.json", bomb), ("tokenizer.json", bomb)]
    ):
        folder = tmp_path / f"base-{number}"
        shutil.copytree(tiny_base_folder, folder)
        (folder / name).write_bytes(data)
        with pytest.raises(TuneryError):
            resolve_base(str(folder), registry=registry, plugins=plugins)
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_base_folder, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(archive)
    with pytest.raises(TuneryError, match="never read"):
        resolve_base(str(folder), registry=registry, plugins=plugins)
    gguf = tmp_path / "model.gguf"
    for data in (bomb, archive, b"GGUF" + bomb):
        gguf.write_bytes(data)
        with pytest.raises(TuneryError):
            resolve_base(str(gguf), registry=registry, plugins=plugins)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.jsonl.gz", "a.pkl", "a.pt"])
def test_rows_in_pickles(bomb: bytes, tmp_path: Path, name: str) -> None:
    for data in (bomb, as_torch_saves(bomb, tmp_path / "archive"), b"PAR1" + bomb + b"PAR1", b"ARROW1" + bomb):
        (tmp_path / name).write_bytes(data)
        assert check_data([tmp_path / name], CheckOptions(max_length=1000), plugins=load_plugins()).errors
    assert not (tmp_path / "mark").exists()


def test_a_checkpoint_with_a_pickle(bomb: bytes, tmp_path: Path) -> None:
    import torch

    from tunery.plugins.training.loop.checkpoint import STATE, load_checkpoint

    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for data in (bomb, as_torch_saves(bomb, tmp_path / "archive")):
        (tmp_path / STATE).write_bytes(data)
        with pytest.raises((pickle.UnpicklingError, RuntimeError, TuneryError)):
            load_checkpoint(tmp_path, model=model, optimizer=optimizer, scheduler=scheduler, fingerprint="")
    assert not (tmp_path / "mark").exists()
