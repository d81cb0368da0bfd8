"""Fixtures every room uses: a home, a registry, a tiny base with a real tokenizer, and the real small base.

The real base is converted once per machine, under TUNERY_TEST_CACHE (default ~/.cache/tunery-tests).
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.forked_process import FORKED_JOBS, FORKED_SUBPROCESS
from tunery.plugins.runtime.allocator import tune_allocator
from tunery.plugins.testing import make_tiny_base
from tunery.registry import Base
from tunery.registry.configuration.oidc import OidcSettings
from tunery.registry.home import Home
from tunery.registry.registry import Registry

# How long examples take says how busy the machine is.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

tune_allocator()

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW_FIXTURES = {"base_folder", "forked_gates", "train"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow every test that trains or needs the real base, whatever else it does."""
    for item in items:
        if isinstance(item, pytest.Function) and not SLOW_FIXTURES.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Keep what was imported and collected from the garbage collector: jobs collect often, and it would walk a million
    objects each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def oidc() -> OidcSettings:
    """Override to accept an issuer's tokens."""
    return OidcSettings()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home."""
    return Home(tmp_path / "home")


@pytest.fixture(scope="session")
def new_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an empty registry, to copy: that takes a tenth of the time of making its tables."""
    root = tmp_path_factory.mktemp("new") / "home"
    Registry.open(Home(root)).close()
    return root


@pytest.fixture
def registry(home: Home, new_home: Path) -> Iterator[Registry]:
    """An empty registry."""
    shutil.copytree(new_home, home.root, dirs_exist_ok=True)
    with Registry.open(home) as registry:
        yield registry


@pytest.fixture(scope="session")
def imported() -> None:
    """What training imports when it is needed, kept from the garbage collector too."""
    from peft import PeftModel  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory, imported: None) -> Path:
    """A random two-layer Llama with a byte-level tokenizer of 384 tokens and a ChatML template, as
    transformers saves it."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture
def tiny_base(registry: Registry, tiny_base_folder: Path) -> Base:
    """The tiny base, registered as `tiny`."""
    from tunery.plugins.bases.resolve import resolve_base
    from tunery.plugins.discovery import load_plugins

    return resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="tiny")


@pytest.fixture(scope="module")
def no_picture() -> Iterator[None]:
    """Reports without their picture, which takes longer than training the tiny base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunery.plugins.training.report.files.draw", lambda *arguments, **options: "not drawn")
        yield


@pytest.fixture(scope="module")
def forked_gates() -> Iterator[None]:
    """Jobs fork the process of their gates, which has no torch to import then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunery.plugins.training.gates.runner.subprocess", FORKED_SUBPROCESS)
        yield


@pytest.fixture
def forked_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The local executor forks the processes of its jobs, and these those of their gates."""
    monkeypatch.setattr("tunery.plugins.executors.local.subprocess", FORKED_JOBS)


@pytest.fixture(scope="session")
def base_cache() -> Home:
    """A home that lasts from one run to the next and holds nothing but the real base."""
    root = os.environ.get("TUNERY_TEST_CACHE") or Path("~/.cache/tunery-tests").expanduser()
    return Home(Path(root))


@pytest.fixture(scope="session")
def base_folder(base_cache: Home) -> Path:
    """The real small base, SmolLM2-135M-Instruct, as safetensors."""
    from tunery.plugins.bases.resolve import resolve_base
    from tunery.plugins.discovery import load_plugins

    with Registry.open(base_cache) as registry:
        return Path(resolve_base("smollm2-135m", registry=registry, plugins=load_plugins()).path)


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder with a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="tun-") as folder:
        yield Path(folder)
