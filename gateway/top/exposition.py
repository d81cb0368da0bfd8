"""Read what a server exposes for Prometheus, and what changed between two times."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Exposition", "read_exposition"]

Labels = tuple[tuple[str, str], ...]


class Exposition(msgspec.Struct, frozen=True):
    """The samples of one scrape at a monotonic time in s, by name and labels; counters with their `_total`."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]

    def value(self, name: str) -> float:
        """The sum of all series of a metric; 0 where there is none."""
        return sum(self.samples.get(name, {}).values())

    def by(self, name: str, label: str) -> dict[str, float]:
        """The values of a metric, summed by one label."""
        found: dict[str, float] = {}
        for labels, value in self.samples.get(name, {}).items():
            key = dict(labels).get(label, "")
            found[key] = found.get(key, 0.0) + value
        return found

    def rate(self, name: str, earlier: Exposition, *, label: str = "") -> dict[str, float]:
        """How fast a counter grew, each second, by one label; one that is smaller has begun again from 0."""
        seconds, before = self.at - earlier.at, earlier.by(name, label)
        if seconds <= 0:
            return {}
        return {
            key: (value - before[key] if value >= before.get(key, 0.0) and key in before else value) / seconds
            for key, value in self.by(name, label).items()
        }

    def quantile(self, name: str, share: float, earlier: Exposition) -> float | None:
        """A quantile of a histogram, interpolated within its bucket, of what was observed since; None for nothing."""
        now, before = self.by(f"{name}_bucket", "le"), earlier.by(f"{name}_bucket", "le")
        begun_again = any(before.get(bound, 0.0) > count for bound, count in now.items())
        counts = sorted(
            (float(bound), count - (0.0 if begun_again else before.get(bound, 0.0))) for bound, count in now.items()
        )
        wanted = share * counts[-1][1] if counts else 0.0
        if not wanted:
            return None
        lower, below = 0.0, 0.0
        for bound, count in counts:
            if count >= wanted:
                return lower if math.isinf(bound) else lower + (bound - lower) * (wanted - below) / (count - below)
            lower, below = bound, count
        return None


def read_exposition(text: str, *, at: float) -> Exposition:
    """Prometheus' text format; raises ValueError for anything else."""
    samples: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return Exposition(at, samples)
