"""Print tables, with times and sizes in them: drawn on a terminal, tab-separated into a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence

__all__ = ["print_table", "size_text", "when"]


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows under a header; `empty` (on stderr) when there are none."""
    lines = [[str(cell) for cell in row] for row in rows]
    if not lines:
        sys.stderr.write(empty + "\n")
        return
    if not sys.stdout.isatty():
        for line in (header, *lines):
            sys.stdout.write("\t".join(line) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, header_style="bold", pad_edge=False)
    for line in lines:
        table.add_row(*line)
    Console().print(table)


def when(seconds: float) -> str:
    """A Unix time as a local date and minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def size_text(size: int) -> str:
    """A number of bytes as kB or MB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
