"""A report in a few lines of plain text."""

from __future__ import annotations

from tunery.plugins.training.report.findings import Change, Note
from tunery.plugins.training.report.schema import General, Report

__all__ = ["change_text", "place", "summarize", "verdict_text"]


def summarize(report: Report, *, chosen: bool = True) -> list[str]:
    """The report in a few lines, one of them about the `chosen` step."""
    lines = []
    if report.held_out is not None:
        lines.append(f"held out: {change_text(report.held_out)}")
        won = report.outcomes
        lines.append(f"rows won {won.win}, tied {won.tie}, lost {won.loss} of {report.held_out.rows} held out")
    if report.general is not None:
        lines.append(f"general skills: {verdict_text(report.general)}")
    lines += [f"chosen: {report.why}"] if chosen else []
    for kind, text in (("suspicious", "may have a wrong answer"), ("memorised", "are memorised")):
        count, notes = report.counts.get(kind, 0), getattr(report, kind)
        if count:
            more = ", …" if count > 3 else ""
            lines.append(f"{count} of {report.looked_at} rows {text}: {', '.join(map(place, notes[:3]))}{more}")
    if report.hardest:
        shown = ", ".join(f"{place(note)} ({note.after:.2f})" for note in report.hardest[:3])
        lines.append(f"hardest rows: {shown}")
    return lines


def change_text(change: Change) -> str:
    """Such as `loss 2.1234 → 1.2345 (-0.89, 95 % between -0.95 and -0.83)`."""
    moved = change.after - change.before
    return f"loss {change.before:.4f} → {change.after:.4f} ({moved:+.3f}, 95 % between {change.low:+.3f} and {change.high:+.3f})"


def verdict_text(general: General) -> str:
    """The verdict on the general set as a sentence."""
    texts = {
        "kept": "kept",
        "forgot": "some forgotten: train fewer epochs, at a lower learning rate, or mix in general rows",
        "unclear": "perhaps some forgotten: the set is too small to tell",
    }
    return f"{texts[general.verdict]}; {change_text(general.change)}"


def place(note: Note) -> str:
    """`file:line`."""
    return f"{note.file}:{note.line}"
