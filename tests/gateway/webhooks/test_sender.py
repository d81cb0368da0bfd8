"""One webhook: signed so that OpenAI's client verifies it, and sent to the checked address and nowhere else."""

from __future__ import annotations

import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import InvalidWebhookSignatureError
from openai.types.webhooks import FineTuningJobSucceededWebhookEvent

from tests.gateway.webhooks.receiver import LOOPBACK, Receiver, Reply, new_secret, receiving
from tunery.gateway.webhooks import sender as sender_module
from tunery.gateway.webhooks.sender import MAX_ANSWER, Answer, Sender
from tunery.registry.configuration.webhooks import WebhookEndpoint, WebhooksSettings
from tunery.registry.errors import InvalidInput
from tunery.registry.records import WebhookEvent
from tunery.registry.webhooks.events import new_event

EVENT = WebhookEvent(id="evt_1", type="fine_tuning.job.succeeded", at=1_000_000.5, data={"id": "ftjob-1"})


async def sent(settings: WebhooksSettings, event: WebhookEvent = EVENT) -> Answer:
    async with Sender(settings) as sender:
        return await sender.send(settings.endpoints[0].url, event)


async def test_openais_client_verifies_and_types_it(receiver: Receiver) -> None:
    answer = await sent(receiver.settings())
    assert (answer.status, answer.body, answer.delivered) == (200, b"ok", True)
    (request,) = receiver.received
    event = receiver.unwrap(request)
    assert isinstance(event, FineTuningJobSucceededWebhookEvent)
    assert (event.id, event.object, event.created_at, event.data.id) == ("evt_1", "event", 1_000_000, "ftjob-1")
    assert request.headers["host"] == f"{LOOPBACK}:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "evt_1"


async def test_a_changed_body_or_another_secret_is_not_verified(receiver: Receiver) -> None:
    await sent(receiver.settings())
    (request,) = receiver.received
    request.body += b" "
    with pytest.raises(InvalidWebhookSignatureError):
        receiver.unwrap(request)
    request.body, receiver.secret = request.body[:-1], new_secret()
    with pytest.raises(InvalidWebhookSignatureError):
        receiver.unwrap(request)


async def test_text_beyond_ascii_is_verified(receiver: Receiver) -> None:
    await sent(receiver.settings(), new_event("tunery.alias.moved", {"actor": "Jané 🙂"}, at=0.0))
    assert receiver.unwrap(receiver.received[0]).data.actor == "Jané 🙂"


async def test_secrets_are_read_from_where_the_settings_say(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(receiver.secret + "\n")
    for place in ("env:HOOK_SECRET", f"file:{tmp_path / 'secret'}"):
        endpoint = msgspec.structs.replace(receiver.endpoint(), secret=place)
        settings = WebhooksSettings(allow=(LOOPBACK,), endpoints=(endpoint,))
        async with Sender(settings, environ={"HOOK_SECRET": receiver.secret}) as sender:
            assert (await sender.send(endpoint.url, EVENT)).delivered
    assert [receiver.unwrap(request).id for request in receiver.received] == ["evt_1", "evt_1"]


def test_missing_secrets_are_reported_together_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("hunter2")
    places = ("env:NONE", "env:BAD", f"file:{tmp_path}/none", f"file:{tmp_path}/bad")
    endpoints = [WebhookEndpoint(url=f"https://a.example/{place}", secret=place) for place in places]
    with pytest.raises(InvalidInput) as caught:
        Sender(WebhooksSettings(endpoints=tuple(endpoints)), environ={"BAD": "whsec_hunter2"})
    for what in ("the variable NONE", "the variable BAD", f"the file {tmp_path}/none", f"the file {tmp_path}/bad"):
        assert what in caught.value.message
    assert "hunter2" not in caught.value.message


async def test_redirects_are_not_followed(receiver: Receiver) -> None:
    with receiving() as elsewhere:
        receiver.replies = [Reply(status=307, headers={"location": elsewhere.url()})]
        answer = await sent(receiver.settings())
        assert not answer.delivered
        assert "redirects are not followed" in answer.problem
        assert elsewhere.received == []


async def test_no_more_of_an_answer_is_read_than_is_shown(receiver: Receiver) -> None:
    receiver.replies = [Reply(status=500, body=b"x" * (64 << 20), headers={"content-encoding": "gzip"})]
    answer = await sent(receiver.settings())
    assert (answer.status, len(answer.body)) == (500, MAX_ANSWER)


async def test_an_endpoint_that_takes_too_long_is_left(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "ATTEMPT_SECONDS", 0.2)
    receiver.replies = [Reply(seconds=200.0)]
    assert (await sent(receiver.settings())).problem == "no answer within 0.2 s"


async def test_what_the_network_does_is_an_answer(receiver: Receiver) -> None:
    with socket.socket() as listening:
        listening.bind((LOOPBACK, 0))
        url = f"http://{LOOPBACK}:{listening.getsockname()[1]}/"
        endpoint = WebhookEndpoint(url=url, secret=receiver.secret)
        answer = await sent(WebhooksSettings(allow=(LOOPBACK,), endpoints=(endpoint,)))
    assert answer.status is None
    assert "ConnectError" in answer.problem


async def test_an_address_that_is_not_allowed_is_not_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, LOOPBACK)
    endpoint = WebhookEndpoint(url=f"https://hooks.example:{receiver.port}/", secret=receiver.secret)
    answer = await sent(WebhooksSettings(allow=("hooks.example",), endpoints=(endpoint,)))
    assert "hooks.example resolves to 127.0.0.1, which is not public" in answer.problem
    assert receiver.received == []


async def test_no_proxy_of_the_environment_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await sent(receiver.settings())).delivered


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's side of TLS as hooks.example, which clients in this process trust."""
    key, crt = tmp_path / "key.pem", tmp_path / "crt.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hooks.example",
         "-addext", "subjectAltName=DNS:hooks.example", "-keyout", key, "-out", crt],
        check=True, capture_output=True,
    )  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(crt))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    return context


async def test_the_certificate_is_checked_for_the_name_though_the_address_is_connected_to(
    certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving(certificate) as receiver:
        resolving(monkeypatch, LOOPBACK)
        for host, works in (("hooks.example", True), ("other.example", False)):
            endpoint = WebhookEndpoint(url=f"https://{host}:{receiver.port}/hook", secret=receiver.secret)
            answer = await sent(WebhooksSettings(allow=(host, LOOPBACK), endpoints=(endpoint,)))
            assert answer.delivered is works, answer
            if not works:
                assert "certificate" in answer.problem
        (request,) = receiver.received
        assert request.headers["host"] == f"hooks.example:{receiver.port}"


def resolving(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Make names resolve to this address, and addresses to themselves."""
    real = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        return real(address if str(host).endswith(".example") else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
