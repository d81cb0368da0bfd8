"""`tunery limits` and `tunery usage`, as processes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from datetime import UTC, datetime

import pytest

from tests.forked_process import run_tunery
from tunery.registry.home import Home
from tunery.registry.limits.overrides import Override
from tunery.registry.registry import Registry
from tunery.registry.usage.records import TRAINING, UsageRecord

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(home: Home) -> dict[str, str]:
    return {**os.environ, "TUNERY_HOME": str(home.root), "TUNERY_ACTOR": "tester"}


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return run_tunery(*words, environment=environment)


def test_limits_are_set_shown_and_cleared(environment: dict[str, str], registry: Registry, home: Home) -> None:
    (home.root / "config.toml").write_text("[limits]\nrequests_per_minute = 600\n")
    key, _ = registry.keys.create(tenant="acme", scopes=("infer",), actor="test")
    done = run(environment, "limits", "set", "--tenant", "acme", "--requests-per-minute", "60", "--queue-share", "0.5")
    assert (done.returncode, done.stderr) == (0, "acme: requests_per_minute 60, queue_share 0.5\n")
    of_key = ("--tenant", "acme", "--key", key.id)
    assert run(environment, "limits", "set", *of_key, "--tokens-per-minute", "9").returncode == 0
    shown = run(environment, "limits", "show").stdout.splitlines()
    assert [line.split("\t") for line in shown[1:]] == [
        ["(default)", "-", "requests_per_minute", "600"],
        ["acme", "-", "queue_share", "0.5"],
        ["acme", "-", "requests_per_minute", "60"],
        ["acme", key.id, "tokens_per_minute", "9"],
    ]
    as_json = json.loads(run(environment, "limits", "show", "--tenant", "globex", "--json").stdout)
    assert as_json == {"default": {"requests_per_minute": 600}, "set": []}
    cleared = run(environment, "limits", "clear", "--tenant", "acme", "queue-share")
    assert cleared.stderr == "acme: 1 limits cleared\n"
    assert run(environment, "limits", "clear", *of_key).stderr == f"the key {key.id} of acme: 1 limits cleared\n"
    assert registry.limits.all() == {("acme", ""): Override(tenant="acme", values={"requests_per_minute": 60})}
    for words, code, message in (
        (("set", "--tenant", "acme"), 2, "name a limit"),
        (("set", "--tenant", "acme", "--key", "x", "--tokens-per-minute", "1"), 3, "acme has no key 'x'"),
        (("set", "--tenant", "acme", "--queue-share", "2"), 2, "at most 1"),
        (("clear", "--tenant", "acme", "nothing"), 2, "unknown limit 'nothing'"),
    ):
        wrong = run(environment, "limits", *words)
        assert (wrong.returncode, message in wrong.stderr) == (code, True), wrong.stderr


def test_usage_is_printed_for_people_and_programs(environment: dict[str, str], registry: Registry) -> None:
    day = datetime(2026, 11, 2, 10, 30, tzinfo=UTC).timestamp()
    chat = {"tenant": "acme", "key": "k", "model": "acme/a@1", "endpoint": "/v1/chat/completions"}
    tokens = {"input_tokens": 3, "cached_tokens": 1, "output_tokens": 4, "milliseconds": 250}
    records = [
        *(UsageRecord(at=at, **chat, **tokens) for at in (day, day + 60, day + 7200)),  # type: ignore[arg-type]
        UsageRecord(at=day + 86_400, tenant="globex", model="globex/b", endpoint=TRAINING, milliseconds=1500),
    ]
    registry.usage.add(records)
    words = ("usage", "--from", "2026-11-01", "--to", "2026-12-01")
    acme = list(csv.DictReader(io.StringIO(run(environment, *words, "--tenant", "acme", "--csv").stdout)))
    (row,) = acme
    assert row == {
        "time": "2026-11-01T00:00Z", "tenant": "acme", "key": "k", "model": "acme/a@1",
        "endpoint": "/v1/chat/completions", "batch": "False", "requests": "3", "input_tokens": "9",
        "cached_tokens": "3", "output_tokens": "12", "seconds": "0.75",
    }  # fmt: skip
    hours = json.loads(run(environment, *words, "--by", "hour", "--json").stdout)
    assert [(row["time"], row["requests"], row["seconds"]) for row in hours] == [
        ("2026-11-02T10:00Z", 2, 0.5),
        ("2026-11-02T12:00Z", 1, 0.25),
        ("2026-11-03T10:00Z", 1, 1.5),
    ]
    table = run(environment, *words, "--by", "day").stdout.splitlines()
    assert [line.split("\t")[:2] for line in table] == [
        ["time", "tenant"],
        ["2026-11-02T00:00Z", "acme"],
        ["2026-11-03T00:00Z", "globex"],
    ]
    nothing = run(environment, "usage", "--from", "2020-01-01", "--to", "2020-01-02")
    assert (nothing.stdout, nothing.stderr) == ("", "nothing was used in that time\n")
    wrong = run(environment, "usage", "--from", "yesterday")
    assert (wrong.returncode, "write a day or a minute" in wrong.stderr) == (2, True)
