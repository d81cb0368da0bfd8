"""Build the documentation site into build/docs/site, strictly: a broken link or a module that
cannot be documented fails.

python docs/build_site.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS, BUILD = ROOT / "docs", ROOT / "build" / "docs"
PAGES, SITE, PACKAGES = BUILD / "pages", BUILD / "site", BUILD / "packages"

MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "CHANGELOG.md": "changelog.md",
    "changes/README.md": "changes.md",
}
"""Pages that lie outside docs/, and their places on the site."""

REFERENCE = {
    "tunery": (
        "tunery",
        "tunery.gateway.python.checking",
        "tunery.gateway.python.training",
        "tunery.gateway.python.serving",
        "tunery.gateway.python.home",
    ),
    "registry": (
        "tunery.registry.registry",
        "tunery.registry.records",
        "tunery.registry.names",
        "tunery.registry.errors",
        "tunery.registry.configuration.settings",
    ),
    "plugins": (
        "tunery.plugins.hookspecs",
        "tunery.plugins.parameters",
        "tunery.plugins.training.trainer",
        "tunery.plugins.training.gates",
        "tunery.plugins.training.objectives.objective",
        "tunery.plugins.data.checks.check",
        "tunery.plugins.data.checks.report",
        "tunery.plugins.testing",
    ),
}
"""Pages of the API reference and the modules on them."""


def main() -> int:
    """Copy the pages, write the reference, and build."""
    shutil.rmtree(BUILD, ignore_errors=True)
    copy_pages()
    # Zensical looks through the folder of its configuration, which therefore holds the pages and nothing else.
    shutil.copy(DOCS / "zensical.toml", BUILD)
    write_reference()
    command = [
        str(Path(sys.executable).with_name("zensical")),
        "build",
        "--strict",
        "--config-file",
        str(BUILD / "zensical.toml"),
    ]
    # PYTHONPATH may hold build/typing, whose link to the checkout would have mkdocstrings' collector walk in circles.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        sys.stderr.write(re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr))
        return 1
    loaded = loaded_from_elsewhere()
    for line in loaded:
        sys.stderr.write(f"{line}\n")
    return 1 if loaded else 0


def copy_pages() -> None:
    """Copy every page to its place on the site, with its links changed where pages moved."""
    shutil.copytree(DOCS / "figures", PAGES / "figures", ignore=shutil.ignore_patterns("*.json"))
    pages = {page.relative_to(ROOT).as_posix(): page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    pages |= MOVED
    for source, place in pages.items():
        target = PAGES / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_linked((ROOT / source).read_text(), source, place, pages))


def _linked(text: str, source: str, place: str, pages: dict[str, str]) -> str:
    """The text of a page with its relative links as they are on the site."""

    def link(match: re.Match[str]) -> str:
        path, _, anchor = match[1].partition("#")
        if not path or "://" in path:
            return match[0]
        target = os.path.normpath(Path(source).parent / path)
        moved = pages.get(target, target.removeprefix("docs/"))
        return f"]({os.path.relpath(moved, Path(place).parent)}{'#' if anchor else ''}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


def write_reference() -> None:
    """Write a page for each part of the API, and link the packages where mkdocstrings finds them without importing."""
    (PAGES / "reference").mkdir()
    for name, modules in REFERENCE.items():
        for module in modules:
            path = ROOT.joinpath(*module.split(".")[1:])
            if not (path.is_dir() or path.with_suffix(".py").exists()):
                raise SystemExit(f"docs/build_site.py names {module}, which does not exist: name what took its place")
        body = "\n\n".join(f"::: {module}" for module in modules)
        (PAGES / "reference" / f"{name}.md").write_text(f"# Python API: {name}\n\n{body}\n")
    (PACKAGES / "tunery").mkdir(parents=True)
    for package in ("registry", "plugins", "gateway"):
        (PACKAGES / "tunery" / package).symlink_to(ROOT / package)
    # Without it this folder is a namespace package, and the installed tunery is found before it.
    (PACKAGES / "tunery" / "__init__.py").symlink_to(ROOT / "gateway" / "python" / "tunery" / "__init__.py")


def loaded_from_elsewhere() -> list[str]:
    """Scripts, styles, fonts and pictures of the built pages that would be loaded over the network."""
    pattern = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//[^\"]+|<link[^>]+rel=\"(?:stylesheet|preconnect)\"[^>]+//[^\"]+"
    )
    return [
        f"{page.relative_to(SITE)}: {match}"
        for page in SITE.rglob("*.html")
        for match in pattern.findall(page.read_text())
    ]


if __name__ == "__main__":
    sys.exit(main())
