"""What a metric is: its names, kind, labels, buckets, and where its value comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from tunery.gateway.engine.messages import Ready, Stats

__all__ = [
    "ADAPTER",
    "BASE",
    "COMPOSITION",
    "FIRST_TOKEN",
    "LOADING",
    "MAX_ADAPTERS",
    "NEXT_TOKEN",
    "NO_TENANT",
    "OTHER",
    "OTHER_TENANTS",
    "TENANT",
    "TOKEN_COUNT",
    "TRANSACTION",
    "VERSION",
    "VERSION_SECONDS",
    "VLLM_LABELS",
    "WHOLE_REQUEST",
    "ByAdapter",
    "Kind",
    "Row",
]

BASE, COMPOSITION, OTHER = "base", "mix", "other"
"""Values of the label `adapter`: the bare base, any composition, and all adapters beyond MAX_ADAPTERS."""
MAX_ADAPTERS = 200
NO_TENANT, OTHER_TENANTS = "_none", "_other"
"""Values of the label `tenant`: no tenant (the bare base, asked without a key), and all tenants without a series of their
own. No tenant can be called so."""

VLLM_LABELS = {"adapter": "model_name", "outcome": "finished_reason"}
"""vLLM's names for labels; others keep their name."""

ADAPTER, TENANT, VERSION = ("adapter",), ("tenant",), ("adapter", "version")
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0)
NEXT_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
WHOLE_REQUEST = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
LOADING = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
VERSION_SECONDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TRANSACTION = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TOKEN_COUNT = (1, 4, 16, 64, 256, 1024, 4096, 16384)

Kind = Literal["counter", "gauge", "histogram"]
ByAdapter = Mapping[str, float]


class Row(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """One metric, served under its own `name`, under `vllm`'s, or under both; counters without their suffix `_total`.

    `starts` says which values of `adapter` have a series at 0 before anything is recorded: all, those of registered
    adapters, or only the base (which is all that vLLM's name ever starts with). `stats` and `ready` take a value from
    what the engine reports.
    """

    kind: Kind
    help: str
    name: str = ""
    vllm: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    starts: Literal["all", "adapters", "base"] | None = None
    stats: Callable[[Stats], float | ByAdapter] | None = None
    ready: Callable[[Ready], float] | None = None
