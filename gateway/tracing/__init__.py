"""OpenTelemetry traces: one span a request, with the stages of its answer below it."""
