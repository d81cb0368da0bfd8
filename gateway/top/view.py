"""Draw an overview for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunery.gateway.top.overview import Overview

__all__ = ["draw"]


def draw(seen: Overview | None, *, server: str, away: str = "") -> RenderableType:
    """The overview; `away` says why there is no newer one."""
    if seen is None:
        return Text(away or f"{server}: asking …", style="yellow" if away else "")
    style = "dim" if away else ""
    parts: list[RenderableType] = [Text(away, style="bold red")] if away else []
    return Group(*parts, *(Group(part, Text()) for part in _tables(seen, style)))


def _tables(seen: Overview, style: str) -> list[RenderableType]:
    state = "up" if seen.up else "engine down"
    head = Text.assemble(
        (f"{seen.server}  ", "bold"), (state, "green" if seen.up else "red"), f"  restarts {seen.restarts}",
        f"  over {seen.seconds:.0f} s", style=style,
    )  # fmt: skip
    return [head, _requests(seen, style), _tenants(seen, style), _adapters(seen, style), _jobs(seen, style)]


def _requests(seen: Overview, style: str) -> Table:
    table = _table(
        "in flight", "running", "waiting", "req/s", "errors/s", "prompt tok/s", "tok/s", "first token p50", "p95", "KV",
        style=style,
    )  # fmt: skip
    table.add_row(
        str(seen.in_flight), str(seen.running), str(seen.waiting), f"{seen.requests:.2f}", f"{seen.errors:.2f}",
        f"{seen.prompt_tokens:.0f}", f"{seen.generated_tokens:.0f}", _time(seen.first_token_p50),
        _time(seen.first_token_p95), f"{100 * seen.kv_used:.0f} %",
    )  # fmt: skip
    return table


def _tenants(seen: Overview, style: str) -> Table:
    table = _table("tenant", "req/s", "tok/s", "adapters", style=style)
    for tenant in seen.tenants:
        table.add_row(_name(tenant.name), f"{tenant.requests:.2f}", f"{tenant.tokens:.0f}", str(tenant.adapters))
    return table


def _adapters(seen: Overview, style: str) -> Table:
    used = f"adapter (memory {seen.resident_bytes / 2**20:.0f} of {seen.budget_bytes / 2**20:.0f} MiB)"
    table = _table(used, "req/s", "tok/s", "running", "in memory", "versions", style=style)
    for load in seen.adapters:
        versions = ", ".join(map(str, load.versions)) + (" pinned" if load.pinned else "")
        size = f"{load.bytes / 2**20:.1f} MiB" if load.bytes else "-"
        row = (f"{load.requests:.2f}", f"{load.tokens:.0f}", str(load.running), size, versions or "-")
        table.add_row(_name(load.name), *row)
    return table


def _jobs(seen: Overview, style: str) -> Table:
    states = ", ".join(f"{state} {count}" for state, count in sorted(seen.jobs.items()) if count)
    table = _table(f"job ({states or 'none'})", "done", "s/step", "loss", style=style)
    for job in seen.running_jobs:
        step = "-" if job.step_seconds is None else f"{job.step_seconds:.2f}"
        loss = "-" if job.train_loss is None else f"{job.train_loss:.3f}"
        table.add_row(_name(job.adapter), f"{100 * job.done:.0f} %", step, loss)
    return table


def _table(*header: str, style: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, style=style)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    return table


def _name(text: str) -> Text:
    """A name as text: it is neither markup nor a control sequence, whatever the server says."""
    return Text("".join(character if character.isprintable() else "\ufffd" for character in text))


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
