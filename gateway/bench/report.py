"""Judge, print and draw what the benchmarks measured.

A bar has two sides: what must be reached at least, and what is aimed at. Bars against other systems need their figures:
JSON lines as the scripts of these systems print them, `{"system", "workload": {"batch", "distinct", "prompt", "new"},
"tok_s", "prefill_tok_s"}`, measured in the same hour on the same machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tunery.gateway.bench.engines import BATCH
from tunery.gateway.bench.suite import Row
from tunery.registry.errors import InvalidInput, Unavailable

__all__ = [
    "Bar",
    "Peer",
    "as_json",
    "bars_table",
    "draw",
    "judge",
    "read_bars",
    "read_peers",
    "read_rows",
    "rows_table",
]


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """One line of another system's figures, in tokens per second over the whole batch; prompts count in `tok_s`."""

    system: str
    workload: dict[str, int]
    tok_s: float
    prefill_tok_s: float
    allocator: str = ""


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the report: the figure, what it is compared with, and both sides of its bar."""

    title: str
    value: float
    unit: str
    least: float
    goal: float
    against: str = ""
    most: bool = False

    @property
    def met(self) -> str:
        """Which side of the bar is met."""
        sign = -1 if self.most else 1
        reached = [sign * self.value >= sign * bar for bar in (self.goal, self.least)]
        return "goal" if reached[0] else "yes" if reached[1] else "NO"


# Rows that are bars as they stand: least, goal, and whether smaller is better.
_PLAIN: dict[str, tuple[float, float, bool]] = {
    "mixed_over_base_nf4": (0.7, 0.9, False),
    "mixed_over_base_int8": (0.7, 0.9, False),
    "registered": (0.97, 1.0, False),
    "zipf": (0.6, 0.8, False),
    "cold_first_token": (60.0, 20.0, True),
    "gap": (2.0, 1.2, True),
    "memory": (1.3, 1.1, True),
    "start": (8.0, 4.0, True),
    "decode_beside_busy": (0.5, 0.75, False),
    "training_beside_busy": (0.5, 0.75, False),
    "gap_beside_huge_prompts": (2.0, 1.2, True),
    "gap_beside_job": (3.0, 2.0, True),
    "job_beside_streams": (0.3, 0.5, False),
    "gateway_p50": (2.0, 1.0, True),
    "gateway_p99": (10.0, 5.0, True),
    "gateway_requests": (1000, 2000, False),
    "gateway_streaming": (0.95, 0.98, False),
}


class _Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A bar against other systems: a row's figure over the best of those whose name contains `system`, in a batch of
    `batch` requests for `distinct` adapters."""

    row: str
    figure: str = "tok_s"
    system: str = ""
    batch: int = BATCH
    distinct: int = BATCH
    least: float
    goal: float

    def fits(self, peer: Peer) -> bool:
        """Whether a line of another system's figures is one to compare with."""
        workload = peer.workload.get("batch"), peer.workload.get("distinct")
        return self.system in peer.system and workload == (self.batch, self.distinct)

    def bar(self, rows: Mapping[str, Row], peers: Sequence[Peer]) -> Bar | None:
        """Our figure over the best of theirs; None where one of them was not measured."""
        fitting = [peer for peer in peers if self.fits(peer)]
        if self.row not in rows or not fitting:
            return None
        best = max(fitting, key=lambda peer: float(getattr(peer, self.figure)))
        row = rows[self.row]
        own, other = float(row.detail[self.figure]), float(getattr(best, self.figure))
        counted = "prefill" if self.figure == "prefill_tok_s" else "prompts counted"
        return Bar(
            title=f"{row.title} ({counted})",
            value=round(own / other, 2),
            unit="×",
            least=self.least,
            goal=self.goal,
            against=f"{own:g} over {best.system}'s {other:g} tok/s",
        )


_COMPARISONS = (
    _Comparison(row="mixed_decode_nf4", least=4, goal=8),
    _Comparison(row="mixed_decode_int8", least=4, goal=8),
    _Comparison(row="mixed_decode_nf4", figure="prefill_tok_s", system="vllm", least=5, goal=8),
    _Comparison(row="alone_decode_nf4", system="llama", batch=1, distinct=0, least=1, goal=1.5),
)


def read_peers(path: Path) -> list[Peer]:
    """The figures of other systems, a JSON object a line; raise InvalidInput naming the line that is none."""
    peers = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                peers.append(msgspec.json.decode(line, type=Peer))
            except msgspec.MsgspecError as error:
                raise InvalidInput(f"{path}:{number} is no line of figures: {error}") from error
    return peers


def judge(rows: Sequence[Row], peers: Sequence[Peer]) -> list[Bar]:
    """The bars for which there are rows and, where they compare, figures of other systems."""
    named = {row.name: row for row in rows}
    bars = [bar for rule in _COMPARISONS if (bar := rule.bar(named, peers)) is not None]
    for name, (least, goal, most) in _PLAIN.items():
        if name in named:
            row = named[name]
            bars.append(Bar(title=row.title, value=row.value, unit=row.unit, least=least, goal=goal, most=most))
    return bars


def rows_table(rows: Sequence[Row]) -> str:
    """What was measured, as Markdown."""
    lines = ["| measured | value |", "|---|---|"]
    return "\n".join(lines + [f"| {row.title} | {row.value:,g} {row.unit} |" for row in rows])


def bars_table(bars: Sequence[Bar]) -> str:
    """The bars, as Markdown."""
    lines = ["| bar | value | at least | goal | met |", "|---|---|---|---|---|"]
    for bar in bars:
        sign = "≤ " if bar.most else ""
        title = f"{bar.title}: {bar.against}" if bar.against else bar.title
        lines.append(f"| {title} | {bar.value:g} {bar.unit} | {sign}{bar.least:g} | {sign}{bar.goal:g} | {bar.met} |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], peers: Sequence[Peer], path: Path) -> None:
    """A picture of throughput against the number of adapters in a batch of 32, other systems' points beside it."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise Unavailable("drawing needs matplotlib: pip install 'tunery[plots]'") from error
    sweep = [(int(row.name.removeprefix("sweep_")), row) for row in rows if row.name.startswith("sweep_")]
    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=150)
    axes.plot([count for count, _ in sweep], [row.detail["tok_s"] for _, row in sweep], marker="o", label="tunery")
    _points(axes.plot, peers)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks([count for count, _ in sweep], [str(count) for count, _ in sweep])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("different adapters in a batch of 32 requests (0: the bare base)")
    axes.set_ylabel("tokens/s, prompts counted")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def _points(plot: Callable[..., Any], peers: Sequence[Peer]) -> None:
    systems: dict[str, dict[int, float]] = {}
    for peer in peers:
        if peer.workload.get("batch") == BATCH:
            points = systems.setdefault(peer.system, {})
            points[peer.workload["distinct"]] = max(peer.tok_s, points.get(peer.workload["distinct"], 0.0))
    for system, points in sorted(systems.items()):
        plot(list(points), list(points.values()), marker="s", linestyle="none", label=system)


def read_rows(kept: dict[str, Any]) -> list[Row]:
    """The rows of what `as_json` wrote."""
    return msgspec.convert(kept["rows"], list[Row])


def read_bars(kept: dict[str, Any]) -> list[Bar]:
    """The bars of what `as_json` wrote."""
    return msgspec.convert(kept["bars"], list[Bar])


def as_json(rows: Sequence[Row], bars: Sequence[Bar], machine: dict[str, Any]) -> str:
    """Everything, for programs."""
    rated = [{**msgspec.to_builtins(bar), "met": bar.met} for bar in bars]
    return json.dumps({"machine": machine, "rows": msgspec.to_builtins(list(rows)), "bars": rated}, indent=2)
