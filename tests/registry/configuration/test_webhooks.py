"""Webhooks in config.toml: what may be configured, and that secrets are never shown."""

from __future__ import annotations

from pathlib import Path

import httpx2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery.registry.configuration.settings import read_settings
from tunery.registry.configuration.webhooks import EVENT_TYPES, WebhookEndpoint, WebhooksSettings, problems
from tunery.registry.errors import InvalidInput

SECRET = "whsec_c2VjcmV0IHNlY3JldCBzZWNyZXQ="
TEXT = """
[webhooks]
allow = ["hooks.example.com", "10.0.0.0/8", "127.0.0.1", "::1", "localhost"]
[[webhooks.endpoints]]
url = "https://hooks.example.com/a"
secret = "%s"
[[webhooks.endpoints]]
url = "http://[::1]:9000/b?x=1"
secret = "env:HOOK_SECRET"
events = ["tunery.alias.moved"]
"""


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "config.toml").write_text(text)
    return tmp_path


def test_endpoints_are_tables_in_the_file_and_json_in_the_environment(tmp_path: Path) -> None:
    webhooks = read_settings(written(tmp_path, TEXT % SECRET), environ={}).webhooks
    assert webhooks.endpoints == (
        WebhookEndpoint(url="https://hooks.example.com/a", secret=SECRET, events=EVENT_TYPES),
        WebhookEndpoint(url="http://[::1]:9000/b?x=1", secret="env:HOOK_SECRET", events=("tunery.alias.moved",)),
    )
    environment = {
        "TUNERY_WEBHOOKS_ALLOW": ",".join(webhooks.allow),
        "TUNERY_WEBHOOKS_ENDPOINTS": msgspec.json.encode(webhooks.endpoints).decode(),
    }
    assert read_settings(tmp_path / "none", environ=environment).webhooks == webhooks


def problem(url: str, *, allow: str = '"hooks.example.com", "127.0.0.1"', more: str = f'secret = "{SECRET}"') -> str:
    return f'[webhooks]\nallow = [{allow}]\n[[webhooks.endpoints]]\nurl = "{url}"\n{more}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (problem("https://other.example.com/"), "host 'other.example.com', which is not in webhooks.allow"),
        (problem("https://hooks.example.com.evil.com/"), "which is not in webhooks.allow"),
        (problem("https://evil.com/hooks.example.com"), "which is not in webhooks.allow"),
        (problem("https://hooks.example.com@evil.com/"), "has a user name"),
        (problem("http://hooks.example.com/"), "must begin with https://"),
        (problem("ftp://127.0.0.1/"), "must begin with https://"),
        (problem("http://127.0.0.2/"), "host '127.0.0.2', which is not in webhooks.allow"),
        (problem("http://127.0.0.1:8000/", allow='"localhost"'), "host '127.0.0.1', which is not in webhooks.allow"),
        (problem("http://10.0.0.1/", allow='"10.0.0.0/8"'), "must begin with https://"),
        (problem(""), "is missing or not a URL"),
        (problem("hooks.example.com"), "is missing or not a URL"),
        (problem("https://hooks.example.com:x/"), "is missing or not a URL"),
        (problem("https://[::1/"), "is missing or not a URL"),
        (problem("https://hooks.example.com/", allow='"hooks.example.com", "*.example.com"'), "'*.example.com' is not"),
        (problem("https://hooks.example.com/", allow='"hooks.example.com", "10.0.0.1/8"'), "'10.0.0.1/8' is not"),
        (problem("https://hooks.example.com/", more=""), "endpoints[0].secret is missing"),
        (problem("https://hooks.example.com/", more='secret = "hunter2"'), "endpoints[0].secret is missing or not"),
        (problem("https://hooks.example.com/", more='secret = "whsec_!"'), "endpoints[0].secret is missing or not"),
        (problem("https://hooks.example.com/", more='secret = "env:"'), "endpoints[0].secret is missing or not"),
        (problem("https://hooks.example.com/", more=f'secrets = "{SECRET}"'), "did you mean 'webhooks.endpoints[0].s"),
        (problem("https://hooks.example.com/", more='events = ["fine_tuning.job.done"]'), "unknown type"),
        ("[webhooks]\nendpoints = 3\n", "webhooks.endpoints is a list of tables"),
        ("[webhooks]\nendpoints = ['https://hooks.example.com/']\n", "webhooks.endpoints is a list of tables"),
    ],
)
def test_what_cannot_be_configured(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_settings(written(tmp_path, text), environ={})
    assert message in caught.value.message
    assert SECRET not in caught.value.message
    assert "hunter2" not in caught.value.message


def test_every_problem_is_reported_together(tmp_path: Path) -> None:
    text = TEXT % SECRET + '[[webhooks.endpoints]]\nurl = "https://hooks.example.com/a"\nsecret = "x"\nevent = []\n'
    with pytest.raises(InvalidInput) as caught:
        read_settings(written(tmp_path, text), environ={"TUNERY_WEBHOOKS_ALLOWED": "x"})
    for message in ("endpoints[2].url is another", "endpoints[2].secret", "endpoints[2].event'", "webhooks.allowed"):
        assert message in caught.value.message


def test_there_is_a_bound(tmp_path: Path) -> None:
    endpoint = '[[webhooks.endpoints]]\nurl = "https://hooks.example.com/%d"\nsecret = "env:X"\n'
    text = '[webhooks]\nallow = ["hooks.example.com"]\n' + "".join(endpoint % number for number in range(17))
    with pytest.raises(InvalidInput, match="at most 16"):
        read_settings(written(tmp_path, text), environ={})


PIECES = st.sampled_from(
    ["https://", "http://", "//", "hooks.example.com", "evil.com", "127.0.0.1", "[::1]", "@", ":", "8000", "/", "\\", "?",
     "#", ".", "%2e", "%00", " ", "\t", "\n", "é", "HOOKS.example.COM", "0x7f.1", "user"]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(url=st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=40))
def test_a_url_that_is_accepted_has_an_allowed_host_for_the_client_too(url: str) -> None:
    endpoint = WebhookEndpoint(url=url, secret=SECRET)
    found = list(problems(WebhooksSettings(allow=("hooks.example.com", "127.0.0.1"), endpoints=(endpoint,))))
    if not found:
        parsed = httpx2.URL(url)
        assert (parsed.scheme, parsed.host) in (
            ("https", "hooks.example.com"), ("https", "127.0.0.1"), ("http", "127.0.0.1"),
        )  # fmt: skip
        assert not parsed.userinfo
