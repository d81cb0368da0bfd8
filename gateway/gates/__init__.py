"""The built-in gates, described without importing them: what a version must prove before it is published."""

from __future__ import annotations

from collections.abc import Callable

from tunery.plugins.hookspecs import GateInfo, hookimpl

__all__ = ["GATES", "register_gates"]

_FILES, _SERVED = "tunery.plugins.training.gates.file_gates", "tunery.gateway.gates.engine_gates"

GATES = (
    GateInfo(
        name="finite",
        code="artifact_nonfinite",
        summary="every tensor is free of NaN and infinities",
        entrypoint=f"{_FILES}:is_finite",
        priority=10,
    ),
    GateInfo(
        name="changed",
        code="adapter_noop",
        summary="the correction of every target is other than zero",
        entrypoint=f"{_FILES}:changes_every_target",
        priority=20,
    ),
    GateInfo(
        name="delta",
        code="delta_unfaithful",
        summary="the delta of a full fine-tune keeps the improvement that was asked for",
        entrypoint=f"{_FILES}:delta_is_faithful",
        priority=30,
    ),
    GateInfo(
        name="served",
        code="serving_mismatch",
        summary="the engine gives the log-probabilities that the trainer gave",
        entrypoint=f"{_SERVED}:serves_what_was_trained",
        priority=40,
    ),
    GateInfo(
        name="stops",
        code="never_stops",
        summary="greedy answers to held-out prompts end by themselves",
        entrypoint=f"{_SERVED}:stops_by_itself",
        priority=50,
    ),
    GateInfo(
        name="improved",
        code="no_improvement",
        summary="the held-out loss is lower than the base's, by a paired bootstrap",
        entrypoint=f"{_SERVED}:is_better_than_base",
        priority=60,
    ),
)


@hookimpl
def register_gates(register: Callable[[GateInfo], None]) -> None:
    """The six."""
    for gate in GATES:
        register(gate)
