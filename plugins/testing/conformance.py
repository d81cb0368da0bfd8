"""The conformance suite: what every trainer must do, as test classes to subclass."""

# A test suite: it asserts, and its random numbers are no secrets.
# ruff: noqa: S101, S311

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tunery.plugins.events import JobEvent, StepCompleted
from tunery.plugins.parameters import read_parameters
from tunery.plugins.testing.harness import TrainerHarness
from tunery.plugins.testing.measure import distributions, divergence
from tunery.plugins.testing.rows import write_pairs, write_rows
from tunery.registry.errors import InvalidInput

__all__ = ["PreferenceConformance", "TrainerConformance"]

FAITHFUL = 0.05
"""How far the saved files may diverge from the live model, as a share of its divergence from the base."""
RECORDED = {"float32": 1e-4, "bfloat16": 1e-2}
"""Relative difference allowed between two ways to compute a loss, by precision."""


class _Killed(BaseException):
    """Stands in for the death of the process."""


class TrainerConformance:
    """What every trainer must do. Set `trainer` to its name, and `values` to the parameters it needs to learn the tiny
    task.

    Override `write` for another kind of rows. Set `parent_trainer` where every run must continue from a version that
    another trainer made.
    """

    trainer: ClassVar[str]
    values: ClassVar[dict[str, Any]] = {}
    parent_trainer: ClassVar[str | None] = None

    @classmethod
    def write(cls, path: Path, rows: int) -> Path:
        """Write a file of rows that the trainer can learn from."""
        return write_rows(path, rows)

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerHarness]:
        """The trainer with everything it needs, made once per class."""
        # Jobs collect garbage often, and everything that pytest and torch have imported would be walked each time.
        gc.collect()
        gc.freeze()
        folder = tmp_path_factory.mktemp("conformance")
        harness = TrainerHarness(
            folder, cls.trainer, dict(cls.values), write=cls.write, parent_trainer=cls.parent_trainer
        )
        yield harness
        harness.registry.close()

    def test_the_held_out_loss_falls(self, harness: TrainerHarness) -> None:
        """The loss on held-out rows falls by a fifth at least."""
        metrics = harness.version.metrics
        assert metrics["eval_loss"] < 0.8 * metrics["base_loss"]

    def test_a_run_repeats_to_the_bit(self, harness: TrainerHarness) -> None:
        """The same inputs give the same digest."""
        assert harness.train().digest == harness.version.digest

    def test_a_killed_run_resumes_to_the_bit(self, harness: TrainerHarness) -> None:
        """Killed at a random step and resumed, a run gives the digest of the uninterrupted one."""
        from tunery.plugins.training import resume

        step = random.randint(4, 40)

        def die(event: JobEvent) -> None:
            if isinstance(event, StepCompleted) and event.step == step:
                raise _Killed

        with pytest.raises(_Killed):
            harness.train(on_event=die)
        job = harness.registry.jobs()[0]
        again = resume(job.id, registry=harness.registry, plugins=harness.plugins, on_event=lambda event: None)
        assert again.digest == harness.version.digest, f"killed at step {step}"

    def test_the_end_of_a_turn_is_learned(self, harness: TrainerHarness) -> None:
        """Greedy answers end with a stop token."""
        import torch

        model = harness.served(harness.gated)
        for prompt in harness.prompts():
            out = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=40,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=list(harness.stop_ids()),
            )
            assert int(out[0, -1]) in harness.stop_ids(), "an answer did not end within 40 tokens"

    def test_what_is_saved_answers_as_what_was_trained(self, harness: TrainerHarness, tmp_path: Path) -> None:
        """The saved files reproduce the live model's distributions, relative to how far they moved from the base's."""
        live, saved, base = distributions(harness, tmp_path)
        moved, missed = divergence(live, base), divergence(live, saved)
        assert moved > 0, "training changed nothing"
        assert missed < FAITHFUL * moved

    def test_the_recorded_loss_is_that_of_what_is_saved(self, harness: TrainerHarness) -> None:
        """The recorded held-out loss is that of the saved files, in the precision recorded; here with steps in
        bfloat16."""
        version = harness.train(precision="bfloat16", max_steps=6)
        measured = harness.saved_loss(version)
        recorded = version.metrics.get("delta_loss", version.metrics["eval_loss"])
        bound = RECORDED[version.manifest["precision"]["measured"]]
        assert measured is None or abs(measured - recorded) < bound * recorded

    def test_what_it_makes_passes_the_gates(self, harness: TrainerHarness) -> None:
        """The gates, which serve the files with the real engine in a fresh process, let them be published."""
        gates = harness.gated.manifest["gates"]
        states = {gate["name"]: gate["passed"] or gate["skipped"] for gate in gates}
        assert states
        assert all(states.values())

    def test_a_run_stops_when_it_is_told_to(self, harness: TrainerHarness) -> None:
        """A cancelled run ends long before its last step and leaves the registry as it was."""
        from tunery.plugins.training.folder import JobFolder
        from tunery.plugins.training.job.control import signal_job

        before, steps = len(harness.registry.versions()), 100_000
        done: list[int] = []

        def cancel_at_first(event: JobEvent) -> None:
            if isinstance(event, StepCompleted):
                done.append(event.step)
                if len(done) == 1:
                    signal_job(JobFolder(harness.registry.home.jobs / harness.registry.jobs()[0].id), "cancel")

        with pytest.raises(KeyboardInterrupt, match="was cancelled"):
            harness.train(on_event=cancel_at_first, max_steps=steps, eval_every=0, checkpoint_every=0)
        assert done[-1] < steps // 10
        assert harness.registry.jobs()[0].state == "cancelled"
        assert len(harness.registry.versions()) == before

    def test_unknown_parameters_are_refused_with_near_ones(self, harness: TrainerHarness) -> None:
        """A misspelt name is an error that suggests the right one."""
        kind = harness.plugins.trainer(self.trainer).parameters
        with pytest.raises(InvalidInput, match="learning_rate"):
            read_parameters(kind, {"learning_rat": 1.0})


class PreferenceConformance(TrainerConformance):
    """What every preference trainer must do: the same, on pairs, continuing from a version that learned to answer.

    So ending an answer must be kept here, rather than learned.
    """

    parent_trainer = "lora"

    @classmethod
    def write(cls, path: Path, rows: int) -> Path:
        """Write pairs of answers."""
        return write_pairs(path, rows)

    def test_held_out_pairs_are_told_apart(self, harness: TrainerHarness) -> None:
        """The chosen answer gains on the rejected one; the model that the run starts from defines zero margin."""
        metrics = harness.version.metrics
        assert metrics["base_preference_accuracy"] == 0.5
        assert metrics["preference_accuracy"] > 0.9
        assert metrics["reward_margin"] > 0
