"""The conformance suites for trainers and executors, and the small base and rows that they run on.

Subclass the suite in a test file of your plugin and run pytest:

    from tunery.plugins.testing import TrainerConformance

    class TestDora(TrainerConformance):
        trainer = "dora"

It trains on a tiny random base that it makes itself, so it needs no download, and takes under a minute on a CPU. It
tests that the held-out loss falls, that a run repeats and resumes to the bit, that the end of a turn is learned, that
the saved files answer like the trained model and have the recorded loss, that the gates pass, that a run can be
cancelled, and that unknown parameters are refused. A trainer of preferences subclasses `PreferenceConformance`.

An executor subclasses `ExecutorConformance`, with its name as `executor`. It tests that jobs run to their end, several at
once, that one that is killed is seen to be and goes on, that one that is stopped goes back to the queue, that one hears
that it is cancelled, and that a lost claim changes nothing.

The parts are of use in other tests too:

    base = make_tiny_base(Path("base"))
    rows = write_rows(Path("rows.jsonl"), 40)
"""

from __future__ import annotations

from tunery.plugins.testing.conformance import PreferenceConformance, TrainerConformance
from tunery.plugins.testing.executors import ExecutorConformance, ExecutorHarness
from tunery.plugins.testing.harness import TrainerHarness
from tunery.plugins.testing.rows import write_pairs, write_rows
from tunery.plugins.testing.tiny_base import CHATML, make_tiny_base

__all__ = [
    "CHATML",
    "ExecutorConformance",
    "ExecutorHarness",
    "PreferenceConformance",
    "TrainerConformance",
    "TrainerHarness",
    "make_tiny_base",
    "write_pairs",
    "write_rows",
]
