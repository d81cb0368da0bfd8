"""The metrics of one gateway process at one time, and of several added up, so that any of them can answer for all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["Family", "Sample", "Snapshot", "exposition", "lasting", "merge", "take_snapshot"]


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """A value of a series."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """A metric with all its series."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...]


Snapshot = tuple[Family, ...]


def take_snapshot(registry: CollectorRegistry) -> Snapshot:
    """All metrics of a registry."""
    return tuple(
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            tuple(Sample(sample.name, tuple(sample.labels.items()), sample.value) for sample in metric.samples),
        )
        for metric in registry.collect()
    )


def merge(snapshots: Sequence[Snapshot], *, shared: Collection[str] = ()) -> Snapshot:
    """The snapshots added up; of what is `shared`, such as the engine's state, only what the first that has it says."""
    merged: dict[str, Family] = {}
    for snapshot in snapshots:
        for family in snapshot:
            known = merged.get(family.name)
            if known is None:
                merged[family.name] = family
            elif family.name not in shared:
                merged[family.name] = _add(known, family)
    return tuple(merged.values())


def lasting(snapshot: Snapshot, *, shared: Collection[str] = ()) -> Snapshot:
    """What is left of a process that has ended: its counters. What it had in flight is gone with it."""
    return tuple(family for family in snapshot if family.kind != "gauge" and family.name not in shared)


def exposition(snapshot: Snapshot) -> bytes:
    """The text that Prometheus scrapes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(snapshot))
    return generate_latest(registry)


def _add(left: Family, right: Family) -> Family:
    values = {(sample.name, sample.labels): sample.value for sample in left.samples}
    for sample in right.samples:
        key = sample.name, sample.labels
        if key not in values:
            values[key] = sample.value
        elif sample.name.endswith("_created"):  # when a series began
            values[key] = min(values[key], sample.value)
        else:
            values[key] += sample.value
    return Family(left.name, left.kind, left.help, tuple(Sample(*key, value) for key, value in values.items()))


class _Collected(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The snapshot as Prometheus' client has it."""
        for family in self._snapshot:
            metric = Metric(family.name, family.help, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, dict(sample.labels), sample.value)
            yield metric
