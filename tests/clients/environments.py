"""Virtual environments with one client each, of pinned versions: made once, and kept under build/clients.

`requirements/NAME.txt` says what is in NAME: first the packages that are tested, then, after an empty line, what pip
installed with them. npm's packages are named in a comment, `# npm: PACKAGE@VERSION`; Node itself is a wheel.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.gateway.serve_process import ServeProcess

__all__ = ["CLIENTS", "FRAMEWORKS", "SCRIPTS", "make_environment", "run_script"]

CACHE = Path(__file__).parents[2] / "build" / "clients"
REQUIREMENTS = Path(__file__).parent / "requirements"
SCRIPTS = Path(__file__).parent / "scripts"
CLIENTS = ("openai-1", "openai-2", "openai-3", "openai-node")
FRAMEWORKS = ("instructor", "langchain", "litellm", "openai-agents", "pydantic-ai")
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
"""Settings of frameworks that would send something elsewhere."""
QUIET = ("--quiet", "--disable-pip-version-check", "--no-input")
SECONDS = 1100
NPM = re.compile(r"^# npm: (\S+)$", re.MULTILINE)


def make_environment(name: str) -> Path:
    """The folder of the environment `name`, made if there is none with these versions yet."""
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    CACHE.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{sys.version}\n{text}".encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    # Several processes of pytest-xdist may want the same one.
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            for older in CACHE.glob(f"{name}-{'?' * 12}"):
                shutil.rmtree(older)
            _install(folder, name, NPM.findall(text))
            (folder / "complete").touch()
    return folder


def _install(folder: Path, name: str, packages: list[str]) -> None:
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    pip = (sys.executable, "-m", "pip", f"--python={folder}/bin/python", "install", *QUIET)
    _run(*pip, "--requirement", str(REQUIREMENTS / f"{name}.txt"))
    if packages:
        npm = ("install", "--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--prefix", str(folder))
        _run(str(folder / "bin" / "npm"), *npm, *packages)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def run_script(
    script: str, environment: str, server: ServeProcess, model: str, folder: Path, *, skip: Iterable[str] = ()
) -> set[str]:
    """Run one of `scripts/` in an environment, as its user would, but for some steps; return the steps that passed."""
    place = make_environment(environment)
    path, program = SCRIPTS / script, place / "bin" / ("node" if script.endswith(".mjs") else "python")
    if script.endswith(".mjs"):
        # Node looks for packages beside the script.
        path = Path(shutil.copy(path, folder))
        (folder / "node_modules").symlink_to(place / "node_modules")
    settings = OFFLINE | {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "unused", "MODEL": model}
    done = subprocess.run(
        [str(program), str(path)],
        env=_clean_environment() | settings | {"SKIP_STEPS": ",".join(skip)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + "\n".join(server.lines()[-20:])
    return set(re.findall(r"^(\w+): ok$", done.stdout, re.MULTILINE))


def _clean_environment() -> dict[str, str]:
    """The environment without what would change what a client does."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON"))}
