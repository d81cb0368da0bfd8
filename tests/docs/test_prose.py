"""The prose check: it is quiet about the documentation, and finds what it is there for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def prose(*files: Path) -> subprocess.CompletedProcess[str]:
    """Run the check over some files."""
    command = [sys.executable, str(ROOT / "docs" / "prose.py"), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_documentation_has_no_findings() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "changes").glob("*.md")]
    assert prose(*pages).stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "finding"),
    [
        ("page.md", "The row is known by heart.\n", "page.md:1: 'by heart': memorised"),
        ("page.md", "\n" + "word " * 25 + "\n", "page.md:2: 125 columns; wrap at 120"),
        ("page.md", "We recieve it.\n", "recieve ==> receive"),
        ("code.py", '"""Owns the rows."""\n', "code.py:1: 'Owns ': say what the module does"),
        ("code.py", 'raise ValueError(f"mend {1} row")\n', "code.py:1: 'mend': fix"),
    ],
)
def test_findings_name_the_line_and_what_to_write(tmp_path: Path, name: str, text: str, finding: str) -> None:
    (tmp_path / name).write_text(text)
    done = prose(tmp_path / name)
    assert done.returncode == 1
    assert finding in done.stdout


def test_code_and_generated_parts_are_left_alone(tmp_path: Path) -> None:
    text = "`mend`\n\n    mend it\n\n```python\nmend = 1\n```\n\n<!-- hooks -->\nmend\n<!-- end of hooks -->\n"
    (tmp_path / "page.md").write_text(text)
    (tmp_path / "code.py").write_text("mend = 1\n")
    assert prose(tmp_path / "page.md", tmp_path / "code.py").returncode == 0
