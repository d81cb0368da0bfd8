"""`tunery jobs --server` and servers that break, refuse, or are none of Tunery's."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from tunery.gateway.api.schemas.fine_tuning import FineTuningEvent, FineTuningJob, JobDetails
from tunery.gateway.cli.jobs import jobs, server
from tunery.gateway.cli.jobs.connection import error_of
from tunery.gateway.cli.jobs.server import ServerJobs
from tunery.registry.errors import (
    ArtifactRefused,
    Conflict,
    InvalidInput,
    NotFound,
    Overloaded,
    StorageFailed,
    TuneryError,
    Unavailable,
)

JOB = msgspec.to_builtins(
    FineTuningJob(
        id="ftjob-1", created_at=1, started_at=None, finished_at=None, estimated_finish=None, model="base",
        fine_tuned_model=None, organization_id="org-default", status="queued", training_file="file-1",
        validation_file=None, result_files=[], trained_tokens=None, error=None, hyperparameters={}, method={}, seed=0,
        user_provided_suffix=None, integrations=[], metadata=None,
        tunery=JobDetails(
            adapter="acme/bot", trainer="lora", base="base", version=None, parent=None, alias=None, priority=0,
            waiting=None, step=None, steps=None,
        ),
    )
)  # fmt: skip


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Scripted:
    """A server that answers by `answer`: a status and a body, which is sent as a stream where it is bytes."""

    url: str
    answer: Callable[[Request], tuple[int, Any]]
    requests: list[Request] = field(default_factory=list)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.rfile.read(int(headers.get("content-length", 0)))
            request = Request(self.command, self.path, headers)
            served.requests.append(request)
            status, body = served.answer(request)
            self.send_response(status)
            self.send_header("content-type", "text/event-stream" if isinstance(body, bytes) else "application/json")
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Scripted(f"http://127.0.0.1:{listening.server_port}", lambda request: (200, JOB))
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield served
    listening.shutdown()
    thread.join()
    listening.server_close()


def event(number: int) -> bytes:
    sent = FineTuningEvent(
        id=f"ftevent-1-{number}", created_at=1, level="info", message=f"event {number}", type="message", data=None,
        tunery={"kind": "step", "number": number, "at": 1.0, "step": number},
    )  # fmt: skip
    return b"id: " + sent.id.encode() + b"\ndata: " + msgspec.json.encode(sent) + b"\n\n"


def envelope(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


@pytest.mark.parametrize("cut", [0, 1, 3, 9, 40, -3, -2, -1])
def test_a_stream_that_breaks_anywhere_loses_and_repeats_nothing(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    monkeypatch.setattr(server, "RECONNECT_SECONDS", 0.0)
    answers: list[tuple[int, Any]] = [
        (200, b": waiting\n\n" + event(1) + event(2) + event(3)[:cut]),
        (503, envelope("draining", "draining")),
        (502, "bad gateway"),
        (200, b""),
        (200, event(3) + event(4) + b"data: [DONE]\n\n" + event(5)),
    ]
    scripted.answer = lambda request: answers.pop(0) if "stream" in request.path else (200, JOB)
    with ServerJobs(scripted.url, key=None) as behind:
        events = list(behind.events("ftjob-1", following=True))
    assert [(each.number, each.kind, each.message, each.data) for each in events] == [
        (number, "step", f"event {number}", {"step": number}) for number in (1, 2, 3, 4)
    ]
    lasts = [request.headers.get("last-event-id") for request in scripted.requests if "stream" in request.path]
    assert lasts == [None, "ftevent-1-2", "ftevent-1-2", "ftevent-1-2", "ftevent-1-2"]


def test_a_server_that_stays_away_is_given_up(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RECONNECT_SECONDS", 0.0)
    monkeypatch.setattr(server, "GIVE_UP_SECONDS", 0.05)
    scripted.answer = lambda request: (503, envelope("draining")) if "stream" in request.path else (200, JOB)
    with ServerJobs(scripted.url, key=None) as behind, pytest.raises(Unavailable, match="draining"):
        list(behind.events("ftjob-1", following=True))


@pytest.mark.parametrize("stream", ["a page", {}, b"data: {}\n\n", b"data: x\n\n", b"data: " + b"x" * (2 << 20)])
def test_a_stream_that_is_none_ends_it(scripted: Scripted, stream: Any) -> None:
    scripted.answer = lambda request: (200, stream if "stream" in request.path else JOB)
    with ServerJobs(scripted.url, key=None) as behind, pytest.raises(InvalidInput, match="does not answer as Tunery"):
        list(behind.events("ftjob-1", following=True))


def test_an_error_while_following_ends_it(scripted: Scripted) -> None:
    scripted.answer = lambda request: (404, envelope("gone")) if "stream" in request.path else (200, JOB)
    with ServerJobs(scripted.url, key=None) as behind, pytest.raises(NotFound, match="gone"):
        list(behind.events("ftjob-1", following=True))


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_value", InvalidInput), (400, "job_ended", Conflict), (400, "not_paused", Conflict),
        (401, "invalid_api_key", InvalidInput), (403, None, InvalidInput), (404, None, NotFound), (409, None, Conflict),
        (413, None, InvalidInput), (422, "nonfinite", ArtifactRefused), (429, "overloaded", Overloaded),
        (500, "internal_error", Unavailable), (500, "disk_full", StorageFailed), (503, "draining", Unavailable),
    ],
)  # fmt: skip
def test_errors_of_a_server_are_those_of_the_command_line(
    status: int, code: str | None, kind: type[TuneryError]
) -> None:
    error = error_of(status, json.dumps(envelope("no\x1b[2J", code)).encode(), url="http://x")
    assert type(error) is kind
    assert (error.message, error.code) == ("no␛[2J", code or kind.code)


@pytest.mark.parametrize("content", [b"", b"<html>", b"{}", b"[]", b'{"error": "no"}', b'{"error": {}}', b"\xff"])
def test_what_is_no_envelope_names_the_server(content: bytes) -> None:
    error = error_of(502, content, url="http://x")
    assert type(error) is Unavailable
    assert "http://x answers with HTTP 502" in error.message


@pytest.mark.parametrize("answer", [[], {}, {"id": "ftjob-1"}, "text", JOB | {"tunery": None}])
def test_a_server_that_is_another(scripted: Scripted, answer: Any) -> None:
    scripted.answer = lambda request: (200, answer)
    with ServerJobs(scripted.url, key=None) as behind, pytest.raises(InvalidInput, match="does not answer as Tunery"):
        behind.job("ftjob-1")


def test_the_key_is_sent_and_never_shown(scripted: Scripted) -> None:
    key = "sk-secret"
    for environment, options in (
        ({"TUNERY_API_KEY": key, "OPENAI_API_KEY": "other"}, []),
        ({"OPENAI_API_KEY": key}, []),
        ({"TUNERY_API_KEY": "other"}, ["--key", key]),
    ):
        done = CliRunner().invoke(
            jobs, ["show", "ftjob-1", "--server", f"{scripted.url}/v1/", *options], env=environment
        )
        assert scripted.requests[-1].headers["authorization"] == f"Bearer {key}"
        assert key not in done.output
    assert "sk-secret" not in CliRunner().invoke(jobs, ["show", "--help"], env={"TUNERY_API_KEY": key}).output
    with pytest.raises(InvalidInput) as caught:
        ServerJobs(scripted.url, key="sk-secret\nx")
    assert key not in caught.value.message


def test_a_redirect_does_not_get_the_key(scripted: Scripted) -> None:
    scripted.answer = lambda request: (307, {})
    with ServerJobs(scripted.url, key="sk") as behind, pytest.raises(Unavailable, match="HTTP 307"):
        behind.job("ftjob-1")
    assert len(scripted.requests) == 1


def test_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with ServerJobs(url, key="sk") as behind, pytest.raises(Unavailable) as caught:
            behind.jobs()
    assert url in caught.value.message
    assert "start it with tunery serve" in caught.value.message


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x", "http://", "http://user:pass@x", "http://x/?a=1", "http://x:y"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InvalidInput, match="--server is"):
        ServerJobs(url, key=None)


def test_a_broken_upload_creates_one_job(scripted: Scripted, tmp_path: Any) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    uploaded = {"id": "file-1", "bytes": 3, "created_at": 1, "filename": "rows.jsonl", "purpose": "fine-tune", "status": "processed"}  # fmt: skip
    answers: list[tuple[int, Any]] = [(200, uploaded), (503, envelope("draining")), (200, JOB)]
    scripted.answer = lambda request: answers.pop(0)
    words = ["submit", "--data", str(rows), "--name", "acme/bot", "--server", scripted.url]
    done = CliRunner().invoke(jobs, words)
    assert (done.exit_code, done.output) == (0, "ftjob-1\n")
    first, again = (request.headers["idempotency-key"] for request in scripted.requests[1:])
    assert first == again
