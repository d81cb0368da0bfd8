"""`tunery keys`, as a process."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from tests.forked_process import run_tunery
from tunery.registry.home import Home
from tunery.registry.keys.api_key import split_token
from tunery.registry.registry import Registry

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(home: Home) -> dict[str, str]:
    return {**os.environ, "TUNERY_HOME": str(home.root), "TUNERY_ACTOR": "tester"}


def keys(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return run_tunery("keys", *words, environment=environment)


def test_a_key_is_printed_once_and_listed_without_its_secret(environment: dict[str, str], registry: Registry) -> None:
    made = keys(environment, "create", "--tenant", "acme", "--scope", "infer", "--scope", "train", "--expires", "90d")
    assert made.returncode == 0
    key_id, secret = split_token(made.stdout.strip()) or ("", "")
    assert made.stderr == f"{key_id}: acme, infer, train; this is shown once; keep it where secrets are kept\n"
    (key,) = registry.keys.list()
    assert (key.id, key.created_by, key.expires_at) == (key_id, "user:tester", key.created_at + 90 * 86400)
    listed = keys(environment, "list")
    assert re.search(rf"{key_id}\s+acme\s+infer,train\s+acme/\*\s+-\s.*active", listed.stdout)
    assert secret not in listed.stdout
    as_json = json.loads(keys(environment, "list", "--json", "--tenant", "acme").stdout)
    assert [(each["id"], each["state"], each["scopes"]) for each in as_json] == [(key_id, "active", ["infer", "train"])]
    assert json.loads(keys(environment, "list", "--json", "--tenant", "globex").stdout) == []


def test_a_key_is_rotated_and_revoked(environment: dict[str, str], registry: Registry) -> None:
    old = json.loads(keys(environment, "create", "--tenant", "acme", "--label", "shop", "--json").stdout)
    new = json.loads(keys(environment, "rotate", old["id"], "--overlap", "1h", "--json").stdout)
    assert (new["tenant"], new["label"], new["scopes"]) == ("acme", "shop", ["infer"])
    assert new["key"] != old["key"]
    revoked = keys(environment, "revoke", new["id"])
    assert (revoked.returncode, revoked.stderr) == (0, f"{new['id']} of acme is revoked\n")
    assert [key.revoked_at is None for key in registry.keys.list()] == [True, False]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("create", "--tenant", "Acme"), 2, "'Acme' is not a tenant"),
        (("create", "--tenant", "acme", "--scope", "inferr"), 2, "did you mean 'infer'?"),
        (
            ("create", "--tenant", "acme", "--expires", "soon"),
            2,
            "--expires soon: write a whole number and s, m, h or d",
        ),
        (("rotate", "none"), 3, "there is no key 'none'; see tunery keys list"),
        (("revoke", "none"), 3, "there is no key 'none'; see tunery keys list"),
    ],
)
def test_mistakes(words: tuple[str, ...], code: int, message: str, environment: dict[str, str]) -> None:
    done = keys(environment, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
