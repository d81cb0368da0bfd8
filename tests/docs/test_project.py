"""What contributors meet: issue forms, workflows, hooks and release notes are valid and name what exists."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
YAML = sorted([*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"])
ADVICE = ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "changes/README.md")


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_parses(path: Path) -> None:
    assert yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_are_forms(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["type"] in ("textarea", "input", "dropdown", "checkboxes") for field in fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]
    assert workflow["permissions"] == {"contents": "read"}


def test_hooks_need_no_network_and_run_what_exists() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        command = hook["entry"].split()
        assert command[0].startswith(".venv/bin/")
        for word in command[1:]:
            assert "/" not in word or (ROOT / word).exists(), word


@pytest.mark.parametrize("name", ADVICE)
def test_advice_names_what_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / name).parent / target).exists(), target
    for path in re.findall(r"`((?:registry|plugins|gateway|tests|docs|examples|changes|deploy)/[^`\s*]*)`", text):
        assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), path
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"\bmake ([a-z-]+)", " ".join(re.findall(r"^    .*$|`[^`]+`", text, re.MULTILINE))):
        assert target in targets, target


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
    listed = {line.split()[0] for line in shown.stdout.splitlines()}
    assert listed == set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())


def test_packages_are_typed_for_their_users() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("registry", "plugins", "gateway"):
        assert (ROOT / package / "py.typed").exists()
        assert "py.typed" in packages[f"tunery.{package}"]
    assert "py.typed" in packages["tunery"]


def test_fragments_become_a_section_of_the_changelog(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "CHANGELOG.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "changes").mkdir()
    (tmp_path / "changes" / "README.md").write_text("not a fragment")
    (tmp_path / "changes" / "+threads.fix.md").write_text("`--resume` accepts `--threads`.\n")
    (tmp_path / "changes" / "7.feature.md").write_text("Rows may be XML.\n")
    towncrier = Path(sys.executable).with_name("towncrier")
    command = [str(towncrier), "build", "--keep", "--version", "9.9.9", "--date", "2030-01-01"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "CHANGELOG.md").read_text()
    assert (
        text.index("## 9.9.9 (2030-01-01)") < text.index("- Rows may be XML. (#7)") < text.index("- `--resume` accepts")
    )
    assert text.index("- `--resume` accepts") < text.index("## Unreleased") < text.index("## 0.1.0")


def test_every_fragment_has_a_known_type() -> None:
    types = {
        entry["directory"]
        for entry in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]["type"]
    }
    for path in (ROOT / "changes").iterdir():
        assert path.name in ("README.md", ".gitkeep") or path.name.split(".")[-2] in types, path.name
