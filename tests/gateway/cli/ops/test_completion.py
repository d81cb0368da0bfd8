"""Completion, in a real Bash, and as other shells ask for it; quick, quiet and from the registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.registry.conftest import Publish, base, publish
from tunery.registry.home import Home
from tunery.registry.registry import Registry

__all__ = ["base", "publish"]

TUNERY = Path(sys.executable).with_name("tunery")
ASK = """
source <(tunery completion bash)
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE}
    COMPREPLY=()
    _tunery_completion tunery
    echo "$COMP_LINE=> ${COMPREPLY[*]}"
done
"""


def environment(home: Home) -> dict[str, str]:
    path = f"{TUNERY.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "TUNERY_HOME": str(home.root), "PATH": path, "PYTHONWARNINGS": ""}


@pytest.mark.slow
@pytest.mark.skipif(not TUNERY.exists() or shutil.which("bash") is None, reason="needs bash and an installed tunery")
def test_bash_completes_commands_references_keys_and_files(registry: Registry, publish: Publish) -> None:
    publish("acme/support", alias="canary")
    publish("globex/legal", seed=1)
    registry.start_job("ft:job-1", adapter="acme/support", trainer="lora")
    key, _ = registry.keys.create(tenant="acme", scopes=("infer",), actor="test")
    expected = {
        "tunery ad": "adapters",
        "tunery adapters show ": "acme/support globex/legal",
        "tunery adapters show acme/support@": "canary 1",
        "tunery adapters show acme/support@c": "canary",
        "tunery adapters alias acme/support canary ": "1",
        "tunery keys revoke ": key.id,
        "tunery jobs show ft:": "job-1",
        "tunery jobs list --key ": "",
        "tunery train --base t": "tiny",
    }
    asked = "".join(f"{line}\n" for line in expected)
    done = subprocess.run(
        ["bash", "-c", ASK], input=asked, capture_output=True, text=True, env=environment(registry.home), timeout=120
    )
    answers = dict(line.split("=> ", 1) for line in done.stdout.splitlines())
    assert (answers, done.stderr) == (expected, "")


def complete(
    words: str, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, shell: str = "zsh"
) -> list[str]:
    """What another shell is told, in this process."""
    from tunery.gateway.cli import main

    monkeypatch.setenv("TUNERY_HOME", str(home.root))
    monkeypatch.setenv("_TUNERY_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", words.split()[-1] if shell == "fish" else str(len(words.split()) - 1))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", sys.stderr)
        with pytest.raises(SystemExit) as ended:
            main([])
    assert not ended.value.code
    return capsys.readouterr().out.split()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_told_the_same(
    registry: Registry,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shell: str,
) -> None:
    publish("acme/support")
    told = complete("tunery adapters show acme/support@", registry.home, monkeypatch, capsys, shell=shell)
    assert any("acme/support@1" in line for line in told)
    assert any("bases" in line for line in complete("tunery b", registry.home, monkeypatch, capsys, shell=shell))


@pytest.mark.parametrize("state", ["missing", "garbage", "folder", "older"])
def test_a_registry_that_cannot_be_read_completes_nothing_and_says_nothing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    registry.close()
    registry.home.database.unlink()
    if state == "garbage":
        registry.home.database.write_bytes(b"x" * 5000)
    elif state == "folder":
        registry.home.database.mkdir()
    elif state == "older":
        registry.home.database.write_bytes(b"")
    before = sorted(registry.home.root.rglob("*"))
    assert complete("tunery adapters show a", registry.home, monkeypatch, capsys) == []
    assert complete("tunery nonsense show a", registry.home, monkeypatch, capsys) == []
    assert sorted(registry.home.root.rglob("*")) == before


def test_names_that_a_shell_would_run_are_left_out(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("job-1", "job-$(touch evil)", "job-\n2", "job- 3"):
        registry.start_job(name, adapter="acme/support", trainer="lora")
    told = complete("tunery jobs show job-", registry.home, monkeypatch, capsys)
    assert told == ["plain", "job-1", "_"]


def test_completing_imports_neither_torch_nor_sqlalchemy(home: Home) -> None:
    script = (
        "import sys, atexit\n"
        "from tunery.gateway.cli import main\n"
        "try:\n    main([])\n"
        "except SystemExit:\n    print([name for name in ('torch', 'sqlalchemy', 'litestar') if name in sys.modules])\n"
    )
    asked = {"_TUNERY_COMPLETE": "bash_complete", "COMP_LINE": "tunery adapters show a"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(home) | asked, timeout=60
    )
    assert done.stdout.strip() == "[]"
