"""Frameworks that speak OpenAI's API: chats with an adapter, streams, tool calls and structured output.

`make frameworks`. The small base is not clever: what is checked is the form of answers, which the engine enforces.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.environments import FRAMEWORKS, SCRIPTS, run_script
from tests.gateway.serve_process import ServeProcess, publish, random_loras
from tunery.registry.registry import Registry

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(1200)]

MODEL = "acme/support"


@pytest.fixture(scope="module")
def adapter(server: ServeProcess, base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random adapter on the server."""
    with Registry.open(server.home) as registry:
        (base,) = registry.bases()
        folders = random_loras(tmp_path_factory.mktemp("lora"), base_folder, 1, size=0.1)
        publish(registry, base, folders, name=lambda index: MODEL)
    return MODEL


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_everything_works_with(framework: str, server: ServeProcess, adapter: str, tmp_path: Path) -> None:
    script = f"with_{framework.replace('-', '_')}.py"
    (steps,) = [line for line in (SCRIPTS / script).read_text().splitlines() if line.startswith("run(")]
    expected = set(steps.removeprefix("run(").removesuffix(")").split(", "))
    assert run_script(script, framework, server, adapter, tmp_path) == expected
