"""Rows are checked before a job begins: errors stop it, unless allowed, and what passed is in the manifest."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.training.conftest import Train
from tunery.plugins.data.checks.runner import _POOL_MIN_BYTES
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import JobEvent, Started, StepCompleted
from tunery.plugins.training import resume
from tunery.plugins.training.inputs.data_check import UNREADABLE, check_rows
from tunery.registry import Base
from tunery.registry.errors import InvalidData, InvalidInput, UnknownName
from tunery.registry.registry import Registry


def repeat_last(path: Path, times: int) -> None:
    """Add the last row again, `times` times."""
    last = path.read_text().splitlines()[-1]
    path.write_text(path.read_text() + (last + "\n") * times)


def check(path: Path, base: Base, *, allow: tuple[str, ...] = ()) -> Any:
    return check_rows([path], None, base=base, max_length=512, allow=allow, plugins=load_plugins(allow=()))


def test_an_error_stops_the_run_before_there_is_a_job(train: Train, data: Path, registry: Registry) -> None:
    repeat_last(data, 2)
    with pytest.raises(InvalidData) as caught:
        train("lora", epochs=1)
    assert caught.value.code == "duplicate"
    assert caught.value.args[0].splitlines() == [
        "2 errors in the data; nothing was trained",
        "rows.jsonl:41: $: is the same as rows.jsonl:40; drop one of them [duplicate]",
        "rows.jsonl:42: $: is the same as rows.jsonl:40; drop one of them [duplicate]",
        "fix the rows, or train on them as they are: --allow duplicate",
    ]
    assert (registry.jobs(), registry.versions()) == ([], [])


def test_what_was_allowed_and_what_was_only_a_warning_are_in_the_manifest(
    train: Train, data: Path, events: list[JobEvent]
) -> None:
    repeat_last(data, 4)
    with data.open("a") as file:
        answer = {"role": "assistant", "content": "write to ann@example.com"}
        file.write(json.dumps({"messages": [{"role": "user", "content": "who"}, answer]}) + "\n")
    data_check = train("lora", max_steps=1, allow=("duplicate", "secret", "duplicate")).manifest["data_check"]
    assert (data_check["allowed"], data_check["findings"]) == (["duplicate", "secret"], {"duplicate": 4, "pii": 1})
    assert [(w["rule"], w["line"]) for w in data_check["warnings"]] == [("duplicate", n) for n in (41, 42, 43)] + [
        ("pii", 45)
    ]
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.data_check == data_check
    assert "ann@example.com" not in json.dumps(data_check)


def test_rows_without_faults_are_recorded_as_such(train: Train) -> None:
    assert train("lora", max_steps=1).manifest["data_check"] == {"allowed": [], "findings": {}, "warnings": []}


def test_a_resumed_job_keeps_what_was_recorded(train: Train, data: Path, registry: Registry) -> None:
    repeat_last(data, 1)

    def die(event: JobEvent) -> None:
        if isinstance(event, StepCompleted) and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("lora", max_steps=3, checkpoint_every=1, allow=("duplicate",), on_event=die)
    (job,) = registry.jobs()
    plugins = load_plugins(allow=(), without=("gates",))
    version = resume(job.id, registry=registry, plugins=plugins, on_event=lambda event: None)
    assert version.manifest["data_check"]["findings"] == {"duplicate": 1}


def test_only_the_first_errors_are_listed_and_the_rest_counted(data: Path, tiny_base: Base) -> None:
    repeat_last(data, 30)
    with pytest.raises(InvalidData) as caught:
        check(data, tiny_base)
    _, *shown, more, _ = caught.value.message.splitlines()
    assert shown == list(caught.value.problems)
    assert len(shown) == 20
    assert more == f"and 10 more; tunery data check {data} --base tiny --max-length 512 shows more"


def test_rules_that_may_not_be_allowed_or_do_not_exist_are_refused(data: Path, tiny_base: Base) -> None:
    with pytest.raises(UnknownName, match="unknown rule 'duplicat': did you mean 'duplicate'"):
        check(data, tiny_base, allow=("duplicat",))
    for rule in UNREADABLE:
        with pytest.raises(InvalidInput, match=f"'{rule}' cannot be allowed"):
            check(data, tiny_base, allow=(rule,))


SCRIPT = """
import os, sys
from pathlib import Path
from tunery.plugins.discovery import load_plugins
from tunery.plugins.training.inputs.data_check import check_rows
from tunery.registry import Base
from tunery.registry.errors import TuneryError

os.sched_getaffinity = lambda process: {0, 1}

def main():
    base = Base(name="tiny", digest="", source="", path=sys.argv[2], parameters=0, added_at=0)
    try:
        check_rows([Path(sys.argv[1])], None, base=base, max_length=8192, allow=(),
                   plugins=load_plugins(allow=()))
    except TuneryError as error:
        print(error.code, error.message)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "message"),
    [('if __name__ == "__main__":\n    main()', "pii"), ("main()", 'unavailable .*if __name__ == "__main__"')],
)
def test_a_script_may_check_a_file_that_takes_several_processes(
    call: str, message: str, data: Path, tiny_base: Base, tmp_path: Path
) -> None:
    with data.open("w") as file:
        for number in range(1000):
            texts = [f"{number} {word} {number * 7} " * 90 for word in ("spring", "autumn")]
            file.write(json.dumps({"prompt": texts[0], "completion": texts[1]}) + "\n")
        file.write('{"prompt": "card", "completion": "4111 1111 1111 1111"}\n')
    assert data.stat().st_size > _POOL_MIN_BYTES
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + call)
    done = subprocess.run(
        [sys.executable, str(script), str(data), tiny_base.path],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert re.match(message, done.stdout), done.stdout + done.stderr
