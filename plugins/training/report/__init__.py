"""The report of a training job: what changed on held-out rows, what was forgotten, and which
training rows deserve a look.

    from tunery.plugins.training.report import read_report, summarize

    report = read_report(folder / "report.json")
    print(*summarize(report), sep="\\n")

Importing it never imports torch, so that `tunery adapters show` can read reports; `builder` and
`evaluation`, which ask models, do.
"""

from __future__ import annotations

from tunery.plugins.training.report.assemble import ReportFacts, assemble_report
from tunery.plugins.training.report.files import write_report
from tunery.plugins.training.report.schema import General, Outcomes, Report, Sample, read_report
from tunery.plugins.training.report.summary import summarize

__all__ = [
    "General",
    "Outcomes",
    "Report",
    "ReportFacts",
    "Sample",
    "assemble_report",
    "read_report",
    "summarize",
    "write_report",
]
