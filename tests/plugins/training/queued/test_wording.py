"""What errors say to those who submitted a job."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tunery.plugins.discovery import load_plugins
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.gates.verdict import GateResult, GatesFailed
from tunery.plugins.training.inputs.data_check import check_before_split
from tunery.plugins.training.job.shortages import shortage_explained
from tunery.plugins.training.queued.wording import queued_wording


def fill_disk(folder: JobFolder) -> None:
    with shortage_explained(folder.path.name):
        raise OSError(errno.ENOSPC, "No space left on device")


def fail_a_gate(folder: JobFolder) -> None:
    result = GateResult(name="served", passed=False, code="gate_served", message="it differs")
    raise GatesFailed([result], folder.path / "output")


def train_on_faulty_rows(folder: JobFolder) -> None:
    rows = folder.path / "data" / "0" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    row = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I hold the line."}]}\n'
    rows.write_text(2 * row)
    check_before_split(rows, allow=(), plugins=load_plugins(), format=None)


@pytest.mark.parametrize(
    ("fail", "says", "hides"),
    [
        (fill_disk, "free some space and go on with tunery jobs resume ftjob-1", "tunery train"),
        (fail_a_gate, "in ftjob-1/output. To publish them all the same", "tunery train"),
        (fail_a_gate, "which is recorded with the version: submit the job again with force", "--force"),
        (train_on_faulty_rows, "nothing was written\nrows.jsonl:2: ", "/data/"),
        (train_on_faulty_rows, "train on them as they are: submit with allow: ", "--allow"),
    ],
)
def test_an_error_says_what_can_be_done_without_a_shell(
    fail: Callable[[JobFolder], None], says: str, hides: str, tmp_path: Path
) -> None:
    folder = JobFolder(tmp_path / "jobs" / "ftjob-1")
    with pytest.raises(Exception, match=r"\w") as caught:
        fail(folder)
    wording = queued_wording(str(caught.value), folder)
    assert says in wording
    assert hides not in wording
    assert str(tmp_path) not in wording
