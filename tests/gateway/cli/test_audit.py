"""`tunery audit`, and `tunery adapters share`, as processes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.forked_process import run_tunery
from tests.registry.artifacts import make_adapter, make_base
from tunery.registry import NewVersion
from tunery.registry.home import Home
from tunery.registry.registry import Registry

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(home: Home) -> dict[str, str]:
    return {**os.environ, "TUNERY_HOME": str(home.root), "TUNERY_ACTOR": "jane"}


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return run_tunery(*words, environment=environment)


def test_an_adapter_is_shared_and_everything_is_in_the_log(
    environment: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    base = registry.add_base(make_base(tmp_path / "base"))
    made = NewVersion(
        adapter="acme/support", folder=make_adapter(tmp_path / "made"), base=base, method="lora", manifest={},
        metrics={}, actor="test",
    )  # fmt: skip
    registry.publish(made)
    shared = run(environment, "adapters", "share", "acme/support", "--with", "initech, globex", "--share-prefixes")
    assert shared.stdout == "acme/support is shared with globex, initech, with its prefix cache\n", shared.stderr
    assert run(environment, "adapters", "list").stdout.splitlines()[1].endswith("\tglobex, initech")
    shown = run(environment, "adapters", "show", "acme/support").stdout
    assert "shared with: globex, initech, with its prefix cache\n" in shown
    assert json.loads(run(environment, "adapters", "list", "--json").stdout)[0]["shared_with"] == ["globex", "initech"]
    left = run(environment, "adapters", "unshare", "acme/support", "--with", "globex")
    assert left.stdout == "acme/support is shared with initech\n"
    run(environment, "adapters", "unshare", "acme/support")
    again = run(environment, "adapters", "unshare", "acme/support")
    assert (again.returncode, again.stderr) == (3, "error: acme/support is not shared with anybody\n")

    log = json.loads(run(environment, "audit", "--actor", "user:jane", "--action", "adapter", "--json").stdout)
    assert [(each["action"], each["after"] and each["after"]["tenants"]) for each in log] == [
        ("adapter.unshare", None), ("adapter.unshare", ["initech"]), ("adapter.share", ["globex", "initech"]),
    ]  # fmt: skip
    rows = run(environment, "audit", "--tenant", "acme", "--limit", "1")
    assert rows.stdout.splitlines()[1].split("\t")[1:] == [
        "user:jane", "adapter.unshare", "acme/support", "acme", "tenants=initech share_prefixes=True", "-", "-",
    ]  # fmt: skip
    assert rows.stderr == "the newest 1; --limit shows more\n"
    assert run(environment, "audit", "--to", "2020-01-01").stderr.startswith("nothing was changed yet")
    assert json.loads(run(environment, "audit", "--from", "2020-01-01T08:00+02:00", "--json").stdout)
    for words, message in (
        (("--from", "soon"), "--from soon: write a date or a time"),
        (("--action", "key.destroy"), "key.destroy"),
    ):
        refused = run(environment, "audit", *words)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert message in refused.stderr
