"""The spans of real requests, as a collector gets them."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from litestar.types import ASGIApp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.gateway.api import conftest
from tests.gateway.api.conftest import Served, one_document, served, settings, tokenizer_folder
from tunery.gateway.api.http.trace import Trace
from tunery.gateway.api.state import Gateway
from tunery.gateway.app import create_app
from tunery.gateway.engine.messages import Timings
from tunery.gateway.metrics.recorder import Metrics
from tunery.gateway.tracing import export
from tunery.gateway.tracing.export import counted_processor
from tunery.gateway.tracing.setup import open_tracer
from tunery.gateway.tracing.tracer import SpanTracer
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import InvalidInput, Unavailable

__all__ = ["one_document", "served", "settings", "tokenizer_folder"]

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 4}


@pytest.fixture(autouse=True)
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where the spans of `served` go."""
    exporter = InMemorySpanExporter()

    def traced(gateway: Gateway) -> ASGIApp:
        gateway.tracer = SpanTracer(exporter, ratio=1.0, named=False, count=gateway.metrics.count_spans)
        return create_app(gateway)

    monkeypatch.setattr(conftest, "create_app", traced)
    return exporter


async def spans(served: Served, exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """What has been exported, by name; nothing can be traced afterwards."""
    assert isinstance(served.gateway.tracer, SpanTracer)
    async with asyncio.timeout(20):
        while served.gateway.requests.count:
            await asyncio.sleep(0.01)
    await served.gateway.tracer.close()
    found = exporter.get_finished_spans()
    assert len({span.name for span in found}) == len(found)
    return {span.name: span for span in found}


async def post(served: Served, path: str, body: Mapping[str, object], **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(verify=False) as client:
        return await client.post(served.url + path, json=body, headers=headers)


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_one_span_with_its_stages_below(
    served: Served, exporter: InMemorySpanExporter, stream: bool
) -> None:
    version = served.publish("acme/support")
    served.engine.delay, served.engine.cached = 0.02, 3
    served.engine.timings = Timings(0.002, 0.004, 0.01)
    before = time.time_ns()
    body = BODY | {"model": "acme/support", "temperature": 0.5, "stop": "zz", "seed": 7, "stream": stream}
    response = await post(served, "/v1/chat/completions", body, traceparent=CALLER)
    found = await spans(served, exporter)
    assert set(found) == {"chat acme/support", "queue", "adapter load", "prefill", "decode"}
    root = found.pop("chat acme/support")
    _, trace_id, span_id, flags = response.headers["traceparent"].split("-")
    assert root.context is not None
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.context.span_id:016x}", flags) == (trace_id, span_id, "01")
    assert (trace_id, f"{root.parent.span_id:016x}") == (CALLER.split("-")[1], CALLER.split("-")[2])
    assert all(span.parent is not None and span.parent.span_id == root.context.span_id for span in found.values())
    shown = attributes(root)
    assert 0 < float(str(shown.pop("gen_ai.response.time_to_first_chunk"))) < 60
    assert shown.pop("tunery.request_id") == response.headers["x-request-id"]
    assert shown.pop("openai.response.system_fingerprint")
    assert int(str(shown.pop("gen_ai.usage.input_tokens"))) > 3
    assert shown == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tunery",
        "gen_ai.request.model": "acme/support",
        "gen_ai.response.model": "acme/support@1",
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stop_sequences": ("zz",),
        "gen_ai.request.seed": 7,
        "gen_ai.request.stream": stream,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "tunery.tenant": "default",
        "tunery.adapter": "acme/support",
        "tunery.digest": version.digest,
    }
    times = {name: (span.start_time or 0, span.end_time or 0) for name, span in {**found, "root": root}.items()}
    assert before <= times["root"][0] <= times["queue"][0] <= times["queue"][1] == times["prefill"][0]
    assert times["queue"][1] - times["queue"][0] == pytest.approx(4e6, abs=1e3)
    assert times["adapter load"][1] - times["adapter load"][0] == pytest.approx(2e6, abs=1e3)
    assert times["prefill"][1] == times["decode"][0] < times["decode"][1] <= times["root"][1] <= time.time_ns()
    assert "secret" not in root.to_json()


async def test_what_names_no_model_and_what_fails_are_spans_too(served: Served, exporter: InMemorySpanExporter) -> None:
    await post(served, "/v1/chat/completions", BODY | {"model": "acme/nothing"})
    served.engine.failure = Unavailable("gone", code="engine_restarted")
    await post(served, "/v1/completions", {"model": "tiny", "prompt": "x"})
    async with httpx.AsyncClient(verify=False) as client:
        await client.get(served.url + "/health/ready")
        await client.get(served.url + "/v1/models")
    found = await spans(served, exporter)
    assert set(found) == {"POST /v1/chat/completions", "text_completion tiny", "queue", "GET /v1/models"}
    refused, failed = found["POST /v1/chat/completions"], found["text_completion tiny"]
    assert attributes(refused)["error.type"] == "model_not_found"
    assert refused.status.status_code is StatusCode.UNSET
    assert attributes(failed)["error.type"] == "engine_restarted"
    assert failed.status.status_code is StatusCode.ERROR


async def test_embeddings_have_no_decode(served: Served, exporter: InMemorySpanExporter) -> None:
    await post(served, "/v1/embeddings", {"model": "tiny", "input": ["a", "b"]})
    assert set(await spans(served, exporter)) == {"embeddings tiny", "queue", "prefill"}


async def test_a_caller_that_does_not_record_is_followed(served: Served, exporter: InMemorySpanExporter) -> None:
    answer = await post(served, "/v1/chat/completions", BODY, traceparent=CALLER.removesuffix("1") + "0")
    assert re.fullmatch(r"00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-00", answer.headers["traceparent"])
    assert await spans(served, exporter) == {}


def test_a_bad_context_begins_a_trace_of_its_own() -> None:
    exporter = InMemorySpanExporter()
    tracer = SpanTracer(exporter, ratio=1.0, named=False, count=Metrics().count_spans)
    for header in ("", "x" * 5000, f"00-{'0' * 32}-{'0' * 16}-01", f"zz-{CALLER[3:]}", f"{CALLER}\n{CALLER}"):
        span = tracer.begin({"traceparent": header})
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]", span.traceparent())
        span.end(Trace(span=span), method="GET", route="/v1/models", status=200)
    asyncio.run(tracer.close())
    found = exporter.get_finished_spans()
    assert [span.parent for span in found] == [None] * 5


def test_a_ratio_of_nothing_traces_only_what_callers_record() -> None:
    exporter = InMemorySpanExporter()
    tracer = SpanTracer(exporter, ratio=0.0, named=False, count=Metrics().count_spans)
    assert not tracer.begin({}).recorded
    assert tracer.begin({"traceparent": CALLER}).recorded
    asyncio.run(tracer.close())


class Collector(BaseHTTPRequestHandler):
    """An OTLP receiver."""

    received: list[ExportTraceServiceRequest]
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        self.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[tuple[str, type[Collector]]]:
    handler = type("OneCollector", (Collector,), {"received": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("configured", ["setting", "variable"])
def test_spans_are_sent_as_otlp(
    collector: tuple[str, type[Collector]], configured: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = collector
    settings, metrics = ServeSettings(), Metrics()
    if configured == "setting":
        settings = ServeSettings(otlp_endpoint=url)
    else:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    tracer = open_tracer(settings, metrics)
    assert tracer is not None
    span = tracer.begin({"traceparent": CALLER})
    span.end(Trace(span=span), method="GET", route="/v1/models", status=200)
    asyncio.run(tracer.close())
    (request,) = handler.received
    (resource,) = request.resource_spans
    (scope,) = resource.scope_spans
    assert [one.name for one in scope.spans] == ["GET /v1/models"]
    assert scope.spans[0].trace_id.hex() == CALLER.split("-")[1]
    about = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert about["service.name"] == "tunery"
    assert b'tunery_trace_spans_total{outcome="exported"} 1.0' in metrics.exposition()


def test_a_collector_that_refuses_costs_spans_and_no_more(collector: tuple[str, type[Collector]]) -> None:
    url, handler = collector
    handler.status = 400
    metrics = Metrics()
    tracer = open_tracer(ServeSettings(otlp_endpoint=url), metrics)
    assert tracer is not None
    span = tracer.begin({})
    span.end(Trace(span=span), method="GET", route="/v1/models", status=200)
    asyncio.run(tracer.close())
    assert b'tunery_trace_spans_total{outcome="dropped"} 1.0' in metrics.exposition()


def test_a_collector_that_hangs_never_makes_a_request_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    release, counted = threading.Event(), dict.fromkeys(("exported", "dropped"), 0)

    class Hanging(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            release.wait(60)
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            release.set()

    def count(outcome: str, number: int) -> None:
        counted[outcome] += number

    monkeypatch.setattr(export, "MAX_QUEUE", 600)
    processor = counted_processor(Hanging(), count)
    tracer = SpanTracer(InMemorySpanExporter(), ratio=1.0, named=False, count=lambda outcome, number: None)
    tracer._provider.add_span_processor(processor)
    for _ in range(1000):
        span = tracer.begin({})
        span.end(Trace(span=span), method="GET", route="/v1/models", status=200)
    assert counted["dropped"] == 400
    release.set()
    asyncio.run(tracer.close())
    assert counted["dropped"] == 400


@pytest.mark.parametrize(
    ("environment", "settings", "message"),
    [
        ({}, ServeSettings(otlp_endpoint="collector:4318"), "set serve.otlp_endpoint to a URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://["}, ServeSettings(), "cannot be sent to 'http://\\['"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            ServeSettings(),
            "http/protobuf only, not 'grpc'",
        ),
    ],
)
def test_what_cannot_be_exported_to_is_an_error_at_the_start(
    environment: dict[str, str], settings: ServeSettings, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        open_tracer(settings, Metrics(), environ=environment)


def test_without_the_packages_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InvalidInput, match=re.escape("pip install 'tunery[otel]'")):
        open_tracer(ServeSettings(otlp_endpoint="http://127.0.0.1:4318"), Metrics())


@pytest.mark.parametrize(
    "environment", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "OTEL_SDK_DISABLED": "true"}]
)
def test_nothing_is_traced_unless_asked_for(environment: dict[str, str]) -> None:
    assert open_tracer(ServeSettings(), Metrics(), environ=environment) is None
