"""Documentation that cannot drift: generated parts match the code, commands that are named exist,
links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("README.md"))]


@pytest.mark.slow
def test_generated_parts_match_the_code() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_that_are_named_exist(page: Path) -> None:
    from tunery.gateway.cli import cli

    shown = "\n".join(re.findall(r"^(?:    |\$ ).*$|`[^`\n]+`", page.read_text(), re.MULTILINE))
    for line in shown.splitlines():
        match = re.search(r"\btunery ([a-z]+)(?: ([a-z]+))?", line)
        if match is None or "tunery-" in line or line.lstrip().startswith("=="):
            continue
        command = cli.get_command(click.Context(cli), match[1])
        assert command is not None, line
        if isinstance(command, click.Group) and match[2]:
            command = command.get_command(click.Context(command), match[2])
            assert command is not None, line
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
        if not isinstance(command, click.Group):
            assert set(re.findall(r"(?<=\s)--[a-z-]+", line)) <= known, line


def test_the_first_two_commands_are_what_ci_and_the_makefile_run() -> None:
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    for target in ("demo", "test", "check", "bench", "soak", "setup"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make setup" in ci
    assert "make test" in ci


def test_the_changelog_names_this_version() -> None:
    from importlib.metadata import version

    assert f"## {version('tunery')}" in (ROOT / "CHANGELOG.md").read_text()
