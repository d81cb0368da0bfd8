"""The native kernels are found or done without, and the engine says why; they bring no OpenMP runtime of their own."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.models import open_model
from tunery.gateway.engine.models.native.kernels import load_kernels, why_no_kernels
from tunery.gateway.engine.models.torch.model import TorchModel
from tunery.plugins.training.fused.kernels import load_kernels as load_training

NAME = f"_kernels{EXTENSION_SUFFIXES[0]}"
PROJECT = Path(__file__).parents[5] / "pyproject.toml"
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def build(folder: Path, source: str) -> None:
    """A library of that source in the kernels' place."""
    (folder / "source.c").write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "source.c", "-o", NAME], cwd=folder, check=True)


def test_what_was_not_built_is_done_without(tmp_path: Path) -> None:
    assert load_kernels(tmp_path) is None
    assert "they were not built" in why_no_kernels(tmp_path)


def test_what_cannot_be_loaded_is_done_without(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"no library")
    assert load_kernels(tmp_path) is None
    assert f"{NAME} cannot be used" in why_no_kernels(tmp_path)


@needs_compiler
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("int tunery_supported(void) { return 0; }", "AVX-512"),
        ("int tunery_supported(void) { return 1; }", "undefined symbol"),
        ("int other;", "undefined symbol"),
    ],
    ids=["a CPU without the instructions", "kernels of another version", "another library"],
)
def test_what_does_not_fit_is_done_without(tmp_path: Path, source: str, message: str) -> None:
    build(tmp_path, source)
    assert load_kernels(tmp_path) is None
    assert message in why_no_kernels(tmp_path)


def test_the_engine_says_once_why_it_does_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_base_folder: Path
) -> None:
    def config(**changes: object) -> EngineConfig:
        settings = {"base_folder": str(tiny_base_folder), "quant": "none", "device": "cpu", "max_batch": 1, **changes}
        return EngineConfig(base_name="tiny", base_digest="0", **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(open_model, "load_kernels", lambda: None)
    monkeypatch.setattr(open_model, "why_no_kernels", lambda: "for a reason")
    opened, _ = open_model.open_model(config())
    assert isinstance(opened, TorchModel)
    stderr = capsys.readouterr().err
    assert stderr == "engine: running without native kernels, which is slower: for a reason\n"
    open_model.open_model(config(kernels="torch"))
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(load_kernels() is None or sys.platform != "linux", reason="the native kernels are not there")
def test_the_kernels_run_on_torchs_own_openmp_threads() -> None:
    assert why_no_kernels() == ""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    runtimes = [path for path in mapped if any(name in path for name in ("libgomp", "libiomp", "libomp"))]
    assert len(runtimes) == 1, runtimes


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="other systems find symbols in other ways")
@pytest.mark.parametrize(
    ("module", "load"), [("gateway.engine.models.native", load_kernels), ("plugins.training.fused", load_training)]
)
def test_built_as_the_package_builds_them_they_name_no_openmp_runtime(
    tmp_path: Path, module: str, load: Callable[..., object]
) -> None:
    """They are compiled with -fopenmp and linked without, so that the symbols are those which torch has brought."""
    extensions = tomllib.loads(PROJECT.read_text())["tool"]["setuptools"]["ext-modules"]
    (extension,) = (each for each in extensions if each["name"] == f"tunery.{module}._kernels")
    assert extension["optional"]
    flags = [flag for flag in extension["extra-compile-args"] if not flag.startswith("-O")]
    sources = [str(PROJECT.parent / source) for source in extension["sources"]]
    subprocess.run(["cc", *flags, "-O1", "-fPIC", "-c", *sources], cwd=tmp_path, check=True)
    objects = [f"{Path(source).stem}.o" for source in sources]
    link = ["cc", "-shared", *objects, "-o", NAME, *extension.get("extra-link-args", ())]
    subprocess.run(link, cwd=tmp_path, check=True)
    assert b"libgomp.so" not in (tmp_path / NAME).read_bytes()
    ctypes.CDLL(str(tmp_path / NAME)).tunery_supported()
    assert (load(tmp_path) is None) == (load() is None)
