"""Whether requests are traced, and where their spans go: the settings, and OpenTelemetry's own variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tunery.gateway.metrics.recorder import Metrics
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import InvalidInput

if TYPE_CHECKING:
    from tunery.gateway.tracing.tracer import SpanTracer

__all__ = ["open_tracer"]

_PATH = "/v1/traces"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def open_tracer(
    settings: ServeSettings, metrics: Metrics, *, environ: Mapping[str, str] = os.environ
) -> SpanTracer | None:
    """What makes spans and exports them; None where no endpoint is set.

    Raises InvalidInput (`invalid_tracing`) when they could not be exported.
    """
    configured = settings.otlp_endpoint or next((environ[name] for name in _ENDPOINTS if environ.get(name)), "")
    if not configured or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    _check(configured, settings, environ)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from tunery.gateway.tracing.tracer import SpanTracer
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"traces are to be sent to {configured}, but {error.name} is not installed: pip install 'tunery[otel]', or "
            "unset serve.otlp_endpoint and OTEL_EXPORTER_OTLP_ENDPOINT",
            code="invalid_tracing",
        ) from error
    # Without an endpoint, the exporter reads the variables, and its path from them.
    exporter = OTLPSpanExporter(endpoint=_traces_url(settings.otlp_endpoint) if settings.otlp_endpoint else None)
    ratio = None if environ.get("OTEL_TRACES_SAMPLER") else settings.trace_ratio
    return SpanTracer(exporter, ratio=ratio, named="OTEL_SERVICE_NAME" in environ, count=metrics.count_spans)


def _check(endpoint: str, settings: ServeSettings, environ: Mapping[str, str]) -> None:
    try:
        parts = urlsplit(endpoint)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(
            f"traces cannot be sent to {endpoint!r}; set serve.otlp_endpoint to a URL such as http://collector:4318",
            code="invalid_tracing",
        )
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), "http/protobuf")
    if not settings.otlp_endpoint and protocol != "http/protobuf":
        raise InvalidInput(
            f"traces are sent as http/protobuf only, not {protocol!r}; set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf and "
            "the endpoint of that, usually port 4318",
            code="invalid_tracing",
        )


def _traces_url(endpoint: str) -> str:
    return endpoint if endpoint.rstrip("/").endswith(_PATH) else endpoint.rstrip("/") + _PATH
