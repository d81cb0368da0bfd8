"""The package's public names are frozen, documented by an example that runs, and cheap to import."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import tunery.registry
from tests.registry.artifacts import make_adapter, make_base

EXPORTS = [
    "AliasMove",
    "ArtifactRefused",
    "Base",
    "Conflict",
    "DataUse",
    "Destination",
    "FileEntry",
    "Home",
    "InvalidData",
    "InvalidInput",
    "Job",
    "JobCancelled",
    "JobPaused",
    "NewVersion",
    "NotFound",
    "Overloaded",
    "Reference",
    "Registry",
    "StorageFailed",
    "TrainingFailed",
    "TuneryError",
    "Unavailable",
    "UnknownName",
    "Version",
    "import_folder",
    "parse_reference",
    "publish_to_hub",
    "pull_from_hub",
]
HEAVY = ("sqlalchemy", "alembic", "huggingface_hub", "numpy", "torch", "transformers", "peft")


def test_the_public_names_are_these() -> None:
    assert sorted(tunery.registry.__all__) == EXPORTS == tunery.registry.__all__
    for name in EXPORTS:
        assert getattr(tunery.registry, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'registrar'"):
        tunery.registry.registrar  # noqa: B018


def test_the_example_in_the_docstring_runs(tmp_path: Path) -> None:
    names = {
        "home": tmp_path / "home",
        "base": make_base(tmp_path / "base"),
        "folder": make_adapter(tmp_path / "adapter"),
    }
    example = doctest.DocTestParser().get_doctest(tunery.registry.__doc__ or "", names, "registry", None, None)
    assert doctest.DocTestRunner().run(example).failed == 0
    assert example.examples


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = f"import sys, tunery.registry; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
