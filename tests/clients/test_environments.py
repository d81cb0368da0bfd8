"""The files of requirements: one for each client, with exact versions and no addresses."""

from __future__ import annotations

import re

from tests.clients.environments import CLIENTS, FRAMEWORKS, REQUIREMENTS, SCRIPTS


def test_there_is_a_file_for_each_client_with_exact_versions() -> None:
    paths = list(REQUIREMENTS.iterdir())
    assert {path.stem for path in paths} == {*CLIENTS, *FRAMEWORKS}
    for path in paths:
        for line in path.read_text().splitlines():
            assert re.fullmatch(r"|[\w.-]+==[\w.]+|# npm: \w+@[\d.]+", line), (path.name, line)


def test_openai_s_client_is_there_in_each_major_version() -> None:
    for major in "123":
        assert (REQUIREMENTS / f"openai-{major}.txt").read_text().startswith(f"openai=={major}.")


def test_a_script_reads_nothing_but_its_environment() -> None:
    for path in SCRIPTS.glob("*.*"):
        assert "tunery" not in path.read_text().replace("Tunery's", ""), path
