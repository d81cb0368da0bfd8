"""A report as Markdown. Texts of rows are only on the page of samples."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunery.plugins.training.report.findings import KEPT, TIE, Note
from tunery.plugins.training.report.schema import Report, Sample
from tunery.plugins.training.report.summary import change_text, place, verdict_text

__all__ = ["page", "samples_page"]

OWN = (
    "This trainer has an objective of its own: steps and evaluations are in its {unit}, losses of rows are those of the better answers, "
    "and before is the model that training started from.\n"
)


def page(report: Report, *, picture: bool) -> str:
    """The whole report, with the `picture` of the losses if there is one."""
    parts = [
        "# Report\n",
        f"`{report.adapter}` by `{report.method}` on `{report.base}`. Losses are in nats per trained token"
        f"{f', measured in {report.precision}' if report.precision else ''}; intervals are paired bootstraps over rows.\n",
        "" if report.supervised else OWN.format(unit=report.loss_unit),
        _held_out(report),
        _general(report),
        f"## Checkpoint\n\nChosen: {report.why}.\n",
        _curve(report, picture),
        _training(report),
        _notes(report),
    ]
    return "\n".join(part for part in parts if part)


def samples_page(samples: Sequence[Sample]) -> str:
    """Held-out prompts with the reference and the answers of base and tuned model."""
    if not samples:
        return ""
    head = "# Samples\n\nGreedy answers to held-out prompts; win, tie and loss are by the reference's loss.\n\n"
    return head + "\n".join(map(_sample, samples))


def _sample(sample: Sample) -> str:
    texts = {"Prompt": sample.prompt, "Reference": sample.reference, "Base": sample.base, "Tuned": sample.tuned}
    title = f"### {sample.file}:{sample.line}: {sample.outcome}, loss {sample.before:.3f} → {sample.after:.3f}"
    return "\n\n".join([title, *(f"{name}\n\n{_fenced(text)}" for name, text in texts.items())]) + "\n"


def _held_out(report: Report) -> str:
    if report.held_out is None:
        return ""
    won = report.outcomes
    text = (
        f"## Held-out rows\n\nOver {report.held_out.rows} rows: {change_text(report.held_out)}.\n\n"
        f"| won | tied | lost |\n|---|---|---|\n| {won.win} | {won.tie} | {won.loss} |\n\n"
        f"A row is won when its answer's loss fell by more than {TIE}, and lost when it rose by more.\n"
    )
    return text + (_table("Held-out rows that became worse", report.worse) if report.worse else "")


def _general(report: Report) -> str:
    if report.general is None:
        return ""
    return (
        f"## Did it forget?\n\nOn {report.general.change.rows} questions of general skills: {verdict_text(report.general)}.\n\n"
        f"Forgotten means that the loss surely rose by more than {KEPT}, kept that it surely did not.\n"
    )


def _curve(report: Report, picture: bool) -> str:
    if not report.evaluations and not picture:
        return ""
    rows = "\n".join(f"| {step} | {loss:.4f} |" for step, loss in report.evaluations)
    name = "held-out loss" if report.supervised else f"held-out {report.loss_unit}"
    table = f"| step | {name} |\n|---|---|\n{rows}\n" if rows else ""
    return "## Loss\n\n" + ("![Loss by step](loss.png)\n\n" if picture else "") + table


def _training(report: Report) -> str:
    if report.training is None:
        return ""
    which = "all" if report.looked_at == report.rows else f"a sample of {report.looked_at} of"
    text = f"## Training rows\n\nOver {which} {report.rows} rows: {change_text(report.training)}.\n"
    suspicious, memorised = report.counts.get("suspicious", 0), report.counts.get("memorised", 0)
    text += _table("Hardest rows", report.hardest)
    text += _table(
        f"Suspicious rows: {suspicious}",
        report.suspicious,
        "Training did not teach them as it taught the rows that were as hard before, or made them worse: look for wrong answers.",
    )
    text += _table(
        f"Memorised rows: {memorised}",
        report.memorised,
        "The model knows them far better than any held-out row that was as hard: look for repeated rows, or train fewer epochs.",
    )
    return text + "\n`tunery data preview FILE:LINE` shows a row.\n"


def _table(title: str, notes: Sequence[Note], why: str = "") -> str:
    if not notes:
        return f"\n### {title}\n" if title.endswith(" 0") else ""
    compared = any(note.like is not None for note in notes)
    header = "| row | tokens | before | after |" + (" rows like it |" if compared else "")
    lines = [f"\n### {title}\n", *([f"{why}\n"] if why else []), header, "|---" * header.count(" |") + "|"]
    for note in notes:
        like = "" if note.like is None else f" {note.like:.3f} |"
        lines.append(f"| `{place(note)}` | {note.tokens} | {note.before:.3f} | {note.after:.3f} |{like}")
    return "\n".join(lines) + "\n"


def _notes(report: Report) -> str:
    return "## Unknown\n\n" + "\n".join(f"- {note}" for note in report.notes) + "\n" if report.notes else ""


def _fenced(text: str) -> str:
    """A code block that no text can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
