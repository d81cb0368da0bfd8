"""The example plugin, installed into a scratch environment as a user would, trains, and what it trained is served."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.gateway.engine.peft_oracle import Engine, request
from tunery.gateway.engine.composition import AdapterSource
from tunery.plugins.testing import write_rows
from tunery.registry.home import Home
from tunery.registry.registry import Registry

EXAMPLE = Path(__file__).parents[2] / "examples" / "tunery-dora"


def run(home: Path, *command: str | Path) -> str:
    """Run a command with its own TUNERY_HOME; its output."""
    environment = {**os.environ, "TUNERY_HOME": str(home), "PIP_NO_INDEX": "1"}
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_installs_lists_trains_and_is_served(tmp_path: Path, tiny_base_folder: Path) -> None:
    scratch, home = tmp_path / "venv", tmp_path / "home"
    venv.create(scratch, with_pip=False)
    python = scratch / "bin" / "python"
    packages = Path(run(home, python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    # The scratch environment sees what is installed here, and gets the example on top.
    lines = [line for place in site.getsitepackages() for line in (f"import site; site.addsitedir({place!r})",)]
    (packages / "here.pth").write_text("\n".join(lines) + "\n")
    source = tmp_path / "source"
    source.mkdir()
    for path in EXAMPLE.iterdir():
        if path.is_file():
            (source / path.name).write_bytes(path.read_bytes())
    install = ("install", "--quiet", "--no-deps", "--no-build-isolation", "--target", packages, source)
    run(home, sys.executable, "-m", "pip", *install)

    tunery = (python, "-m", "tunery.gateway.cli")
    listed = {record["name"]: record for record in json.loads(run(home, *tunery, "plugins", "--json"))}
    assert listed["dora"]["error"] is None
    assert listed["dora"]["distribution"] == "tunery-dora"
    run(home, *tunery, "bases", "add", tiny_base_folder, "--name", "tiny")
    rows = str(write_rows(tmp_path / "rows.jsonl", 40))
    enough = ("precision=float32", "learning_rate=0.01", "batch_size=4", "epochs=6", "eval_fraction=0.2")
    settings = [word for setting in enough for word in ("--set", setting)]
    train = ("train", "--method", "dora", "--base", "tiny", "--data", rows, "--name", "acme/tiny", *settings, "--json")
    trained = json.loads(run(home, *tunery, *train))
    assert trained["method"] == "dora"
    assert trained["metrics"]["eval_loss"] < trained["metrics"]["base_loss"]

    with Registry.open(Home(home)) as registry:
        version = registry.resolve("acme/tiny")
        files = {name: str(path) for name, path in registry.files(version).items()}
        config = json.loads(Path(files["adapter_config.json"]).read_text())
        assert (config["use_dora"], config["r"]) == (True, 8)
        source_of = AdapterSource(version.digest, "acme/tiny", 1, files)
        prompt = tuple(range(5, 15))
        served = Engine.on(Path(registry.base("tiny").path)).run(
            [request("dora", prompt, source_of), request("base", prompt)]
        )
    assert [t.logprob for t in served["dora"]] != [t.logprob for t in served["base"]]
    run(home, python, "-m", "pytest", "-q", "-c", os.devnull, source / "test_tunery_dora.py")


def test_it_is_small() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in EXAMPLE.glob("*.py"))
    assert lines < 60
