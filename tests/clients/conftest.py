"""One server for all clients: the real small base with a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked_process import fork_jobs
from tests.gateway.serve_process import ServeProcess, start_server
from tunery.registry.home import Home


@pytest.fixture(scope="session")
def server(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """A server that trains and answers."""
    folder = tmp_path_factory.mktemp("clients")
    with start_server(folder, Home(folder / "home"), base_folder, prepare=fork_jobs) as server:
        yield server
