"""Secrets are in no log, error, metric or description of an object."""

from __future__ import annotations

import logging

import httpx
import msgspec
import pytest

from tests.gateway.api.conftest import Served
from tunery.registry.configuration.settings import ServeSettings, Settings
from tunery.registry.configuration.webhooks import WebhookEndpoint, WebhooksSettings
from tunery.registry.keys.api_key import SCOPES

SECRET = "whsec_dGhpcyBpcyBhIHNlY3JldA=="
PROMPT = "the patient's name is Ödipus"


@pytest.fixture
def settings() -> ServeSettings:
    return ServeSettings(base="tiny", max_batch=4, max_waiting=400, access_log=True)


@pytest.mark.slow
async def test_keys_and_prompts_are_in_no_log_error_or_metric(
    served: Served, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, token = served.gateway.registry.keys.create(tenant="acme", scopes=SCOPES, actor="test")
    secret = token.partition(".")[2]
    ask = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}]}
    seen = []
    async with httpx.AsyncClient(base_url=served.url, verify=False, timeout=60) as client:
        for sent in (token, token[:-1], token + "x", f"{token},{token}", secret):
            client.headers["authorization"] = f"Bearer {sent}"
            for method, path, body in (
                ("POST", "/v1/chat/completions", ask),
                ("POST", "/v1/chat/completions", ask | {"model": "acme/none", "temperature": "hot"}),
                ("POST", "/v1/chat/completions", ask | {"stream": True}),
                ("POST", "/v1/completions", {"model": "tiny", "prompt": [PROMPT]}),
                ("GET", "/v1/models/acme/none", None),
                ("GET", "/metrics", None),
                ("GET", "/nowhere", None),
            ):
                answer = await client.request(method, path, json=body)
                seen.append(answer.text + str(answer.headers))
    out, err = capfd.readouterr()
    logs = out + err + caplog.text
    assert '"route": "/v1/chat/completions"' in logs
    for text in (*seen, logs, repr(key), repr(served.gateway.settings), repr(served.gateway.registry)):
        assert secret not in text
    assert not any(PROMPT in text for text in (*seen, logs))
    assert "dipus" not in logs


def test_a_key_is_kept_as_its_hash(served: Served) -> None:
    registry = served.gateway.registry
    _, token = registry.keys.create(tenant="acme", scopes=SCOPES, actor="test")
    secret = token.partition(".")[2].encode()
    for path in registry.home.root.rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path


def test_settings_do_not_show_the_secrets_of_webhooks() -> None:
    endpoint = WebhookEndpoint(url="https://hooks.example/services/T0/secret-path", secret=SECRET)
    settings = Settings(webhooks=WebhooksSettings(allow=("hooks.example",), endpoints=(endpoint,)))
    for shown in (repr(endpoint), str(settings), f"{settings.webhooks!r}", repr([endpoint])):
        assert "hooks.example" in shown
        assert SECRET not in shown
        assert "secret-path" not in shown
    assert msgspec.to_builtins(endpoint)["secret"] == SECRET
