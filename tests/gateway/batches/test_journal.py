"""The journal: whatever was cut short or written by others, each request has one answer, and none is lost that was kept."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.engine.hypothesis_settings import often
from tunery.gateway.batches.journal import Entry, Journal


def entry(line: int, text: str = "answer", *, failed: bool = False) -> Entry:
    return Entry(line, failed, (3, 1, 2), msgspec.Raw(json.dumps({"line": line, "text": text}).encode()))


def results(journal: Journal, folder: Path) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    journal.write_results(folder / "good", folder / "bad")
    good, bad = ((folder / name).read_text().splitlines() for name in ("good", "bad"))
    return [json.loads(line) for line in good], [json.loads(line) for line in bad]


def test_answers_are_sorted_into_results_and_failures_in_the_order_of_the_input(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "batch", fence=1, total=4)
    journal.append([entry(3), entry(1, failed=True)])
    journal.append([entry(2)])
    good, bad = results(journal, tmp_path)
    assert ([each["line"] for each in good], [each["line"] for each in bad]) == ([2, 3], [1])
    counts = journal.counts
    assert (counts.total, counts.completed, counts.failed) == (4, 2, 1)
    assert (counts.input_tokens, counts.cached_tokens, counts.output_tokens) == (9, 3, 6)
    journal.close()


def test_what_a_claim_that_was_lost_writes_later_is_not_seen(tmp_path: Path) -> None:
    old = Journal(tmp_path / "batch", fence=1, total=3)
    old.append([entry(1, "old")])
    new = Journal(tmp_path / "batch", fence=2, total=3)
    old.append([entry(2, "old")])
    assert (1 in new, 2 in new) == (True, False)
    new.append([entry(2, "new")])
    assert [each["text"] for each in results(new, tmp_path)[0]] == ["old", "new"]
    third = Journal(tmp_path / "batch", fence=3, total=3)
    assert third.counts.completed == 2
    for journal in (old, new, third):
        journal.close()


@often(40)
@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=4), st.data())
def test_files_cut_anywhere_give_each_whole_answer_once(claims: list[list[int]], data: st.DataObject) -> None:
    """The files of claims that crashed, each with the answers that it gave, cut at any byte."""
    with tempfile.TemporaryDirectory() as folder:
        place, expected = Path(folder) / "batch", dict[int, int]()
        for fence, lines in enumerate(claims, 1):
            journal = Journal(place, fence=fence, total=9)
            journal.append([entry(line, str(fence)) for line in lines])
            journal.close()
            path = place / f"answers-{fence:08}.jsonl"
            whole = path.read_bytes()
            kept = whole[: data.draw(st.integers(0, len(whole)))]
            path.write_bytes(kept)
            for line in lines[: kept.count(b"\n")]:
                expected.setdefault(line, fence)
        last = Journal(place, fence=len(claims) + 1, total=9)
        good, _ = results(last, Path(folder))
        assert {int(str(each["line"])): int(str(each["text"])) for each in good} == expected
        assert len(good) == len(expected) == last.counts.completed
        assert [each["line"] for each in good] == sorted(expected)
        last.close()
