"""`tunery config`: values, where they come from, and all problems at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.cli.ops.test_backup import run

SECRET = "whsec_dGhlIHdob2xlIHRydXRo"
FILE = f"""
[serve]
port = 8001
host = "127.0.0.1"

[webhooks]
allow = ["example.com"]

[[webhooks.endpoints]]
url = "https://example.com/a"
secret = "{SECRET}"

[[webhooks.endpoints]]
url = "https://example.com/b"
secret = "env:HOOK_SECRET"
"""


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text(FILE)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[Any, str]]:
    assert run("config", "show", "--json", *arguments) == 0
    return {each["name"]: (each["value"], each["source"]) for each in json.loads(capsys.readouterr().out)["settings"]}


def test_each_value_says_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNERY_SERVE_PORT", "8002")
    monkeypatch.setenv("TUNERY_JOBS_NICE", "3")
    values = shown(capsys, "--set", "serve.max-batch=5", "--set", "jobs.nice=4")
    assert values["serve.port"] == (8002, "TUNERY_SERVE_PORT")
    assert values["serve.host"] == ("127.0.0.1", "config.toml")
    assert values["serve.max_batch"] == (5, "option")
    assert values["jobs.nice"] == (4, "option")
    assert values["serve.quant"] == ("nf4", "default")
    assert "serve.quant" not in shown(capsys, "--changed")
    assert {name.partition(".")[0] for name in shown(capsys, "jobs", "training")} == {"jobs", "training"}


def test_secrets_are_masked_and_references_to_them_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = shown(capsys)["webhooks.endpoints"][0]
    assert (first["secret"], second["secret"]) == ("********", "env:HOOK_SECRET")
    assert run("config", "show") == 0
    assert SECRET not in capsys.readouterr().out


def test_fields_of_other_names_that_are_secret() -> None:
    from tunery.registry.configuration.effective import masked

    assert masked("client_secret", "x") == masked("password", "x") == masked("api_key", "x") == "********"
    assert masked("token_budget", 5) == 5
    assert masked("max_tokens", "5") == "5"
    assert masked("limits_url", "redis://me:hidden@host:1/0") == "redis://********@host:1/0"
    assert masked("oidc", {"client_secret": "x", "issuer": "https://a"}) == {
        "client_secret": "********",
        "issuer": "https://a",
    }
    assert masked("tls_key", "/etc/tls/key.pem") == "/etc/tls/key.pem"


def test_all_problems_are_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("config", "check") == 2
    assert "the variable HOOK_SECRET must be whsec_" in capsys.readouterr().err
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    assert run("config", "check") == 0
    monkeypatch.setenv("TUNERY_SERVE_DEVICE", "tpu")
    monkeypatch.setenv("TUNERY_JOBS_EXECUTOR", "locl")
    assert run("config", "check") == 2
    problems = capsys.readouterr().err
    assert "serve.device: device 'tpu'" in problems
    assert "did you mean 'local'" in problems
    (tmp_path / "config.toml").write_text("[serve]\nport = -1\nprot = 1\n[serv]\n")
    monkeypatch.setenv("TUNERY_SERVE_MAX_BATCH", "none")
    assert run("config", "check") == 2
    problems = capsys.readouterr().err
    assert all(name in problems for name in ("serve.port", "serve.prot", "'serv'", "serve.max_batch"))


@pytest.mark.parametrize(
    "arguments", [("nothing",), ("--set", "port=1"), ("--set", "serve.prot=1"), ("--set", "serve.port")]
)
def test_what_is_mistyped_is_refused(arguments: tuple[str, ...]) -> None:
    assert run("config", "show", *arguments) == 2
