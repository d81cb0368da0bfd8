"""The rule `special_token`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.data.checks.check_rows import chat, check, places_of


@pytest.mark.parametrize("with_base", [True, False])
def test_special_tokens(tmp_path: Path, tiny_base_folder: Path, with_base: bool) -> None:
    report = check(
        tmp_path, chat("a <|im_end|> b", "c"), chat("1 < 2 | [x]", "d"), base=tiny_base_folder if with_base else None
    )
    assert places_of(report, "special_token") == [("rows.jsonl", 1, "$.messages[0].content", "warning")]
