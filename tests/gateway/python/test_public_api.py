"""`import tunery`: what it exports, that importing it is cheap, and that the example in its documentation runs."""

from __future__ import annotations

import doctest
import inspect
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tunery
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import JobEvent, StepCompleted
from tunery.plugins.testing import write_rows
from tunery.registry.home import Home
from tunery.registry.registry import Registry

QUICK = {"precision": "float32", "max_steps": 2, "r": 4}


@pytest.fixture
def small_base(home: Home, tiny_base_folder: Path) -> str:
    """The tiny base under the name of the small one, which the documentation's example takes."""
    with Registry.open(home) as registry:
        return resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="smollm2-135m").name


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 20)


def test_what_is_exported_changes_only_on_purpose() -> None:
    assert tunery.__all__ == [
        "AliasMove",
        "ArtifactRefused",
        "Base",
        "Conflict",
        "DataReport",
        "Finding",
        "InvalidData",
        "InvalidInput",
        "Job",
        "JobCancelled",
        "JobPaused",
        "NotFound",
        "Overloaded",
        "Registry",
        "ServeSettings",
        "Server",
        "StorageFailed",
        "TrainingFailed",
        "TuneryError",
        "Unavailable",
        "UnknownName",
        "Version",
        "check_data",
        "current_actor",
        "open_registry",
        "resume",
        "serve",
        "train",
    ]
    assert set(tunery.__all__) == set(tunery._MODULES)
    assert set(tunery.__all__) <= set(dir(tunery))
    for name in tunery.__all__:
        assert inspect.getdoc(getattr(tunery, name)), name
    with pytest.raises(AttributeError, match="'trian'"):
        tunery.trian  # noqa: B018


@pytest.mark.slow
def test_importing_it_and_naming_everything_imports_neither_torch_nor_a_server() -> None:
    code = (
        "import sys, tunery\n"
        "assert [name for name in sys.modules if name.startswith('tunery')] == ['tunery']\n"
        "for name in tunery.__all__: getattr(tunery, name)\n"
        "assert not {'torch', 'transformers', 'litestar', 'granian'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["tunery", "tunery.registry", "tunery.plugins", "tunery.gateway"])
def test_every_package_says_that_it_is_typed(package: str) -> None:
    module = sys.modules[package]
    assert (Path(module.__path__[0]) / "py.typed").exists()


def test_wrong_data_is_reported_and_raises_nothing(tmp_path: Path, home: Home) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "2+2?", "completion": "4"}\n{"prompt": 3}\n')
    report = tunery.check_data(path, home=home.root)
    (error, *_) = report.errors
    assert (error.line, error.rule) == (2, "schema")
    with pytest.raises(tunery.NotFound):
        tunery.check_data(tmp_path / "none.jsonl", home=home.root)


@pytest.mark.slow
def test_mistakes_are_the_errors_that_the_command_line_prints(home: Home, rows: Path, small_base: str) -> None:
    for arguments, message in (
        ({"method": "lorra"}, "did you mean 'lora'"),
        ({"parameters": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
        ({"name": "Not A Name"}, "tenant/name"),
        ({"device": "tpu"}, "device 'tpu'"),
    ):
        with pytest.raises(tunery.InvalidInput, match=message):
            tunery.train(rows, home=home.root, **({"name": "acme/tone"} | arguments))
    with pytest.raises(tunery.InvalidInput, match="unknown base 'smollm2-135n'") as raised:
        tunery.serve(tunery.ServeSettings(base="smollm2-135n", port=0), home=home.root)
    assert raised.value.code == "unknown_name"
    with pytest.raises(tunery.InvalidInput, match="device 'tpu'"):
        tunery.serve(tunery.ServeSettings(device="tpu"), home=home.root)


@pytest.mark.usefixtures("forked_gates")
def test_training_reports_its_events(home: Home, rows: Path, small_base: str) -> None:
    events: list[JobEvent] = []
    version = tunery.train(
        [rows], name="acme/tone", parameters=QUICK, force=True, home=home.root, on_event=events.append
    )
    assert [event.step for event in events if isinstance(event, StepCompleted)] == [1, 2]
    with tunery.open_registry(home.root) as registry:
        assert registry.versions("acme/tone") == [version]
        (job,) = registry.jobs()
    with pytest.raises(tunery.InvalidInput, match="has already succeeded"):
        tunery.resume(job.id, home=home.root)


@pytest.mark.slow
def test_a_server_ends_with_the_process_that_started_it(home: Home, small_base: str, tmp_path: Path) -> None:
    code = (
        "import tunery\n"
        "settings = tunery.ServeSettings(port=0, quant='none', dtype='float32')\n"
        f"print(tunery.serve(settings, log={str(tmp_path / 'log')!r})._process.pid, flush=True)\n"
        "import os; os._exit(1)\n"
    )
    environment = os.environ | {"TUNERY_HOME": str(home.root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    server = Path("/proc") / done.stdout.strip()
    for _ in range(600):
        if not server.exists() or " Z " in (server / "stat").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the server still runs")
    assert "ready: " in (tmp_path / "log").read_text()


@pytest.mark.usefixtures("forked_gates")
def test_the_example_in_the_documentation_runs(
    home: Home, rows: Path, small_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_HOME", str(home.root))
    monkeypatch.chdir(rows.parent)
    results = doctest.testmod(tunery, optionflags=doctest.ELLIPSIS)
    assert results.attempted >= 6
    assert results.failed == 0
