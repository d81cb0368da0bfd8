"""docs/security.md names the tests that hold what it says, and all those of this folder."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`(tests/[\w/.]+)`", PAGE))


def test_every_test_that_is_named_exists() -> None:
    assert len(NAMED) > 15
    assert [name for name in sorted(NAMED) if not (ROOT / name).exists()] == []


def test_every_attack_of_this_folder_is_named() -> None:
    here = {f"tests/security/{path.name}" for path in Path(__file__).parent.glob("test_*.py")}
    assert here - NAMED == {"tests/security/test_threat_model.py"}
