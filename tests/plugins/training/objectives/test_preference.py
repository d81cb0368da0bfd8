"""Preference training: the loss and its gradient are the paper's, it starts at log 2, it learns,
repeats and resumes."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins.training.conftest import Train
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import Evaluated, JobEvent, Started, StepCompleted
from tunery.plugins.parameters import TrainingParameters, read_parameters
from tunery.plugins.testing import write_pairs, write_rows
from tunery.plugins.trainers import DpoParameters
from tunery.plugins.training import reproduce, resume
from tunery.plugins.training.examples.batches import Example, collate, epoch_batches
from tunery.plugins.training.examples.corpus import Corpus, read_corpus
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.fused import padding_free
from tunery.plugins.training.job.control import POLL_SECONDS, signal_job
from tunery.plugins.training.objectives.preference import Preference
from tunery.registry import Base
from tunery.registry.errors import InvalidData, InvalidInput, JobPaused, TuneryError
from tunery.registry.hub.card import model_card
from tunery.registry.losses import loss_text, loss_unit
from tunery.registry.registry import Registry

CPU, FLOAT = torch.device("cpu"), torch.float32

KINDS: list[dict[str, Any]] = [
    {},
    {"beta": 0.5, "label_smoothing": 0.2},
    {"kind": "ipo", "beta": 0.3},
    {"sft_weight": 0.7},
]


def example(length: int, answer: int, seed: int) -> Example:
    """Ids whose last `answer` are trained."""
    ids = [(seed * 31 + 7 * place) % 300 for place in range(length)]
    return Example(ids, [place >= length - answer for place in range(length)], seed)


def pair(length: int, better: int, worse: int, seed: int) -> Example:
    first, second = example(length + better, better, seed), example(length + worse, worse, seed + 50)
    return Example(first.ids, first.trained, seed, "", second)


PAIRS = [pair(6, 4, 9, 1), pair(12, 3, 2, 2), pair(4, 8, 5, 3)]


@pytest.fixture
def models(tiny_base: Base) -> tuple[Any, Any]:
    """A policy and a reference of different pairs on the tiny base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made: list[Any] = []
    for seed in (1, 2):
        base = AutoModelForCausalLM.from_pretrained(tiny_base.path, dtype=torch.float32, attn_implementation="sdpa")
        torch.manual_seed(seed)
        made.append(get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)))
    return made[0], made[1]


def log_likelihood(model: Any, row: Example) -> torch.Tensor:
    """By the book: every logit, an explicit log-softmax, the trained tokens picked out one by one."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0]
    log_probs = [
        logits[place - 1].log_softmax(-1)[row.ids[place]] for place in range(1, len(row.ids)) if row.trained[place]
    ]
    return torch.stack(log_probs).sum()


def by_the_book(
    policy: Any, reference: Any, *, beta: float = 0.1, label_smoothing: float = 0.0, kind: str = "sigmoid",
    sft_weight: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    total = torch.zeros(())
    for row in PAIRS:
        assert row.rejected is not None
        better, worse = log_likelihood(policy, row), log_likelihood(policy, row.rejected)
        with torch.no_grad():
            before, other = log_likelihood(reference, row), log_likelihood(reference, row.rejected)
        if kind == "ipo":
            ratio = (better - before) / row.targets - (worse - other) / row.rejected.targets
            loss = (ratio - 1 / (2 * beta)) ** 2
        else:
            margin = beta * ((better - worse) - (before - other))
            chance = 1 / (1 + torch.exp(-margin))
            loss = -(1 - label_smoothing) * chance.log() - label_smoothing * (1 - chance).log()
        total = total + loss - sft_weight * better / row.targets
    return total


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("settings", KINDS)
def test_loss_and_gradient_are_those_of_two_models_by_the_book(
    settings: dict[str, Any],
    packed: bool,
    models: tuple[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, reference = models
    expected = by_the_book(policy, reference, **settings)
    if not packed:
        monkeypatch.setattr(padding_free, "ARCHITECTURES", set())
    objective = Preference(**settings)
    objective.prepare(reference, (PAIRS, ()), path=tmp_path / "reference.json", device=CPU, dtype=FLOAT)
    loss = objective.loss(policy, collate(PAIRS, device=CPU))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(policy, loss), gradients(policy, expected), strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


def test_a_model_against_itself_has_lost_log_2_and_prefers_nothing(models: tuple[Any, Any], tmp_path: Path) -> None:
    objective = Preference()
    objective.prepare(models[0], (PAIRS,), path=tmp_path / "reference.json", device=CPU, dtype=FLOAT)
    figures = objective.evaluate(models[0], PAIRS, batch_size=8, device=CPU, dtype=FLOAT)
    assert figures["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert (figures["reward_margin"], figures["preference_accuracy"]) == (0, 0.5)


def test_the_reference_is_read_again_where_it_was_kept(models: tuple[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    first, second = Preference(), Preference()
    first.prepare(models[0], (PAIRS,), path=path, device=CPU, dtype=FLOAT)
    second.prepare(models[1], (PAIRS,), path=path, device=CPU, dtype=FLOAT)
    batch = collate(PAIRS, device=CPU)
    assert torch.equal(first.loss(models[1], batch), second.loss(models[1], batch))


def test_a_pair_without_reference_log_probabilities_is_refused(models: tuple[Any, Any], tmp_path: Path) -> None:
    objective = Preference()
    objective.prepare(models[0], (PAIRS[:1],), path=tmp_path / "reference.json", device=CPU, dtype=FLOAT)
    with pytest.raises(TuneryError, match="line 2"):
        objective.loss(models[0], collate(PAIRS, device=CPU))


def test_both_halves_are_in_a_batch_and_count_for_its_order() -> None:
    batch = collate(PAIRS, device=CPU)
    assert batch.ids.shape[0] == 6
    assert batch.tokens == sum(len(row.ids) + len(row.rejected.ids) for row in PAIRS if row.rejected)
    assert batch.lines == (1, 2, 3)
    long = pair(4, 2, 200, 9)
    ((first, second),) = epoch_batches([long, PAIRS[1]], 2, seed=0, epoch=0)
    assert (first, second) == (PAIRS[1], long)


# -- rows --------------------------------------------------------------------------------------------------------------


def corpus(path: Path, base: Base, *, preferences: bool = True, **settings: Any) -> Corpus:
    return read_corpus(
        [path], None, TrainingParameters(**{"max_length": 512, "eval_fraction": 0.0} | settings),
        formats=load_plugins(allow=()).formats(), renderer=Renderer(Path(base.path)), preferences=preferences,
    )  # fmt: skip


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_only_the_answers_are_trained_however_many_turns_came_before(tmp_path: Path, tiny_base: Base) -> None:
    prompt = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "an earlier answer"},
        {"role": "user", "content": "two"},
    ]
    better, worse = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
    path = write(tmp_path / "rows.jsonl", {"prompt": prompt, "chosen": [better], "rejected": [worse]})
    (row,) = corpus(path, tiny_base).train
    renderer = Renderer(Path(tiny_base.path))
    assert row.rejected is not None
    for half, text in ((row, "good"), (row.rejected, "bad")):
        trained = [number for number, wanted in zip(half.ids, half.trained, strict=True) if wanted]
        assert renderer.decode(trained, skip_special=False) == f"{text}<|im_end|>"
        assert half.ids[: len(half.ids) - len(trained)] == renderer.prompt_ids(prompt)


def test_pairs_about_one_prompt_are_never_on_both_sides(tmp_path: Path, tiny_base: Base) -> None:
    rows = [{"prompt": f"item {number // 2}", "chosen": f"good {number}", "rejected": "bad"} for number in range(20)]
    examples = corpus(write(tmp_path / "rows.jsonl", *rows), tiny_base, eval_fraction=0.3)
    sides = [{(row.line - 1) // 2 for row in side} for side in (examples.train, examples.held_out)]
    assert min(map(len, sides)) > 0
    assert not sides[0] & sides[1]


def test_rows_that_a_trainer_cannot_learn_from_are_refused(tmp_path: Path, tiny_base: Base) -> None:
    pairs, chats = write_pairs(tmp_path / "pairs.jsonl", 2), write_rows(tmp_path / "rows.jsonl", 2)
    with pytest.raises(InvalidData, match=r"pairs.jsonl:1: has a rejected answer.*--method dpo"):
        corpus(pairs, tiny_base, preferences=False)
    with pytest.raises(InvalidData, match=r"rows.jsonl:2: has no rejected answer.*--method lora"):
        corpus(chats, tiny_base)
    alike = write(tmp_path / "alike.jsonl", {"prompt": "q", "chosen": "abc def x", "rejected": "abc def y"})
    (row,) = corpus(alike, tiny_base).train
    assert row.rejected is not None
    shared = next(n for n, (one, other) in enumerate(zip(row.ids, row.rejected.ids, strict=False)) if one != other)
    with pytest.raises(InvalidData, match="both answers are the same within max_length"):
        corpus(alike, tiny_base, max_length=shared)


def test_parameters_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(InvalidInput, match="label_smoothing"):
        read_parameters(DpoParameters, {"loss": "ipo", "label_smoothing": 0.1})


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", 40)


def test_a_run_starts_at_log_2_and_learns_what_is_preferred(
    train: Train, pairs: Path, events: list[JobEvent], registry: Registry
) -> None:
    version = train("dpo", files=(pairs,), epochs=4)
    first = next(event for event in events if isinstance(event, StepCompleted))
    assert first.loss == pytest.approx(math.log(2), abs=1e-5)
    metrics = version.metrics
    assert metrics["base_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["eval_loss"] < 0.3
    assert (metrics["base_preference_accuracy"], metrics["base_reward_margin"]) == (0.5, 0)
    assert metrics["preference_accuracy"] > 0.9
    assert metrics["ranking_accuracy"] >= metrics["base_ranking_accuracy"]
    assert metrics["reward_margin"] > 1
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    assert all({"preference_accuracy", "reward_margin"} <= set(event.figures) for event in evaluated)
    assert not (registry.home.jobs / version.manifest["job"] / "reference.json").exists()
    # Nowhere is this loss taken for nats.
    assert {first.unit, *(event.unit for event in evaluated), loss_unit(version)} == {"DPO loss per pair"}
    assert "lowest held-out DPO loss per pair of" in version.manifest["checkpoint"]["why"]
    report = registry.files(version)["report/report.md"].read_text()
    assert "steps and evaluations are in its DPO loss per pair" in report
    assert "| step | held-out DPO loss per pair |" in report
    assert loss_text(version).endswith(" DPO loss per pair")
    assert "Losses are in DPO loss per pair" in model_card(version, base_model="tiny", repository="acme/tiny")


def test_a_paused_run_goes_on_to_the_same_bits_and_a_rerun_too(train: Train, pairs: Path, registry: Registry) -> None:
    settings = {"files": (pairs,), "epochs": 2, "checkpoint_every": 0, "dropout": 0.1}
    whole = train("dpo", **settings)
    assert train("dpo", **settings).digest == whole.digest

    def pause(event: JobEvent) -> None:
        if isinstance(event, StepCompleted) and event.step == 5:
            signal_job(JobFolder(registry.home.jobs / registry.jobs()[0].id), "pause")
            time.sleep(3 * POLL_SECONDS)

    with pytest.raises(JobPaused):
        train("dpo", on_event=pause, **settings)
    job = registry.jobs()[0].id
    assert (registry.home.jobs / job / "reference.json").exists()
    version = resume(
        job, registry=registry, plugins=load_plugins(allow=(), without=("gates",)), on_event=lambda _: None
    )
    assert version.digest == whole.digest


def test_a_version_is_reproduced_to_the_bit(train: Train, pairs: Path, registry: Registry) -> None:
    version = train("dpo", files=(pairs,), epochs=1)
    plugins = load_plugins(allow=(), without=("gates",))
    again = reproduce(version, data=(), registry=registry, plugins=plugins, on_event=lambda _: None)
    assert (again.same, again.differences) == (True, ())


def test_micro_batches_change_nothing_but_rounding(train: Train, pairs: Path) -> None:
    one, two = (train("dpo", files=(pairs,), epochs=2, micro_batch_size=size) for size in (4, 1))
    assert one.metrics["eval_loss"] == pytest.approx(two.metrics["eval_loss"], rel=1e-3)


def started(events: list[JobEvent]) -> Started:
    (event,) = (event for event in events if isinstance(event, Started))
    return event


def test_the_chosen_learning_rate_is_far_below_that_of_answers(
    train: Train, pairs: Path, events: list[JobEvent]
) -> None:
    train("dpo", files=(pairs,), max_steps=1, learning_rate="auto")
    preferring = next(choice for choice in started(events).choices if choice.name == "learning_rate")
    events.clear()
    train("lora", max_steps=1, learning_rate="auto")
    answering = next(choice for choice in started(events).choices if choice.name == "learning_rate")
    assert preferring.value < answering.value / 5
    assert "DPO" in preferring.source
