"""Evaluating models: the scores are those of the loss, answers are greedy and end, nothing that
training depends on is touched."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.discovery import load_plugins
from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.testing import write_rows
from tunery.plugins.training import load_base
from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.examples.corpus import Corpus, read_corpus
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.loop.compute import ComputeContext
from tunery.plugins.training.objectives.loss import mean_loss
from tunery.plugins.training.report.evaluation import (
    LARGEST_SAMPLE,
    PROMPTS_ANSWERED,
    SMALLEST_SAMPLE,
    Evaluation,
    example_losses,
    general_examples,
    generate_answers,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny_base_folder: Path) -> Any:
    return load_base(tiny_base_folder, quant="none", dtype=torch.float32, device=CPU)


@pytest.fixture(scope="module")
def renderer(tiny_base_folder: Path) -> Renderer:
    return Renderer(tiny_base_folder)


@pytest.fixture
def corpus(tmp_path: Path, renderer: Renderer) -> Corpus:
    return read_corpus(
        [write_rows(tmp_path / "rows.jsonl", 40)], None, TrainingParameters(max_length=512, eval_fraction=0.5),
        formats=load_plugins(allow=()).formats(), renderer=renderer,
    )  # fmt: skip


def evaluation_of(corpus: Corpus, renderer: Renderer, folder: Path, **changes: Any) -> Evaluation:
    compute = ComputeContext(device=CPU, dtype=torch.float32, measured_dtype=torch.float32)
    options: dict[str, Any] = {"seen": 100, "seed": 0, **changes}
    return Evaluation(corpus, renderer, folder=JobFolder(folder), compute=compute, **options)


def test_scores_are_the_loss_of_each_example_in_their_order(model: Any, corpus: Corpus) -> None:
    losses = example_losses(model, corpus.held_out, device=CPU, dtype=torch.float32)
    assert [one.tokens for one in losses] == [example.targets for example in corpus.held_out]
    for example, one in zip(corpus.held_out, losses, strict=True):
        alone = mean_loss(model, [example], batch_size=1, device=CPU, dtype=torch.float32)
        assert one.nats == pytest.approx(alone * example.targets, rel=1e-5)


def test_of_a_pair_the_better_half_is_scored(model: Any) -> None:
    plain = Example([1, 5, 6, 7], [False, False, True, True], 1)
    pair = Example([1, 5, 6, 7], [False, False, True, True], 1, "", Example([1, 9, 9], [False, True, True], 1))
    assert example_losses(model, [pair], device=CPU, dtype=torch.float32) == example_losses(
        model, [plain], device=CPU, dtype=torch.float32
    )


def test_a_loss_that_is_no_number_is_none(tiny_base_folder: Path, corpus: Corpus) -> None:
    broken: Any = load_base(tiny_base_folder, quant="none", dtype=torch.float32, device=CPU)
    broken.model.norm.weight.data.fill_(math.nan)
    assert {one.nats for one in example_losses(broken, corpus.held_out, device=CPU, dtype=torch.float32)} == {None}


def test_answers_are_what_the_model_alone_generates_and_end_before_the_stop(model: Any, renderer: Renderer) -> None:
    prompts = [renderer.prompt_ids([{"role": "user", "content": text}]) for text in ("a", "something much longer")]
    together = generate_answers(model, prompts, stop_ids=(), limit=8, device=CPU, dtype=torch.float32)
    for prompt, answer in zip(prompts, together, strict=True):
        ids = list(prompt)
        for _ in range(8):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer == ids[len(prompt) :]
    stop = together[0][3]
    stopped = generate_answers(model, prompts[:1], stop_ids=(stop,), limit=8, device=CPU, dtype=torch.float32)
    assert stopped == [together[0][: together[0].index(stop)]]


def test_the_model_and_the_random_states_are_left_as_they_were(
    model: Any, corpus: Corpus, renderer: Renderer, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    states = torch.get_rng_state(), random.getstate()
    evaluation_of(corpus, renderer, tmp_path).evaluate(model)
    assert model.training
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_base_is_evaluated_once_a_job(model: Any, corpus: Corpus, renderer: Renderer, tmp_path: Path) -> None:
    loads = 0

    def load() -> Any:
        nonlocal loads
        loads += 1
        return model

    first = evaluation_of(corpus, renderer, tmp_path).base_results(load)
    assert evaluation_of(corpus, renderer, tmp_path).base_results(load) == first
    assert loads == 1
    assert first.held_out_loss == pytest.approx(
        mean_loss(model, corpus.held_out, batch_size=4, device=CPU, dtype=torch.float32), rel=1e-5
    )
    assert len(first.answers) == PROMPTS_ANSWERED


def test_training_rows_are_sampled_whole_by_the_seed(corpus: Corpus, renderer: Renderer, tmp_path: Path) -> None:
    # Two examples a row, as of a template that shows each answer its own prompt.
    many = [Example([1, 2, 3], [False, True, True], 1 + n // 2, "rows.jsonl") for n in range(20_000)]
    large = Corpus(many, [], [], 0)
    few, most, other = (
        evaluation_of(large, renderer, tmp_path, seen=seen, seed=seed)
        for seen, seed in ((10, 0), (10**9, 0), (10**9, 1))
    )
    assert (len(few.train), len(most.train)) == (2 * SMALLEST_SAMPLE, 2 * LARGEST_SAMPLE)
    assert few.rows == 10_000
    lines = [{example.line for example in looked.train} for looked in (most, other)]
    assert len(lines[0]) == LARGEST_SAMPLE
    assert lines[0] != lines[1]
    assert len(evaluation_of(large, renderer, tmp_path, rows=5).train) == 10
    assert len(evaluation_of(corpus, renderer, tmp_path).train) == len(corpus.train)


def test_prompts_end_where_the_last_answer_begins(renderer: Renderer, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "second"},
    ]
    (rendered,) = renderer.examples(messages)
    corpus = Corpus([], [Example(rendered.ids, rendered.trained, 1, "rows.jsonl")], [], 0)
    ((_, prompt, reference),) = evaluation_of(corpus, renderer, tmp_path).prompts
    assert prompt == renderer.prompt_ids(messages[:3])
    assert renderer.decode(reference) == "second"


def test_the_general_set_covers_many_skills_and_fits_the_tiny_base(renderer: Renderer) -> None:
    import tunery.plugins.training.report as package

    path = Path(package.__file__).with_name("general.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) >= 40
    assert len({row["skill"] for row in rows}) >= 8
    examples = general_examples(renderer)
    assert len(examples) == len(rows)
    assert all(example.targets > 0 for example in examples)
