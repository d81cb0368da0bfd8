"""Evaluate base and tuned model alike: held-out rows, a sample of the training rows, general
questions, and a few answers in full.

The base's results are stored with the job, so that a resumed job uses the very same numbers. Nothing here draws from
the random states that training depends on.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.training.examples.batches import Example, collate
from tunery.plugins.training.examples.corpus import Corpus
from tunery.plugins.training.folder import JobFolder, replace_file
from tunery.plugins.training.loop.compute import ComputeContext
from tunery.plugins.training.objectives.loss import evaluation_mode, row_losses
from tunery.registry.errors import InvalidInput

__all__ = ["Evaluation", "EvaluationResults", "ExampleLoss", "general_examples", "generate_answers", "example_losses"]

ROWS, TOKENS = 32, 2048
"""The largest batch: rows, and tokens unless it is a single row."""
LARGEST_SAMPLE, SMALLEST_SAMPLE, SHARE = 1000, 64, 0.1
"""Training rows evaluated: as many as make both evaluations cost SHARE of the training (a row's step costs about 2.2
evaluations), within these limits."""
PROMPTS_ANSWERED, LONGEST_ANSWER, LONGEST_PROMPT = 6, 128, 1024
"""Held-out prompts that are answered in full, and the most tokens of an answer and of a prompt."""


class ExampleLoss(msgspec.Struct, frozen=True, array_like=True):
    """The loss of an example in nats, summed over `tokens`; None when it is not finite."""

    nats: float | None
    tokens: int


class EvaluationResults(msgspec.Struct, frozen=True):
    """One model's results: losses in the order of the examples, and answers to the prompts.

    When the model cannot generate, `answers` is empty and `generation_error` says why.
    """

    held_out: list[ExampleLoss]
    train: list[ExampleLoss]
    general: list[ExampleLoss]
    answers: list[str]
    generation_error: str = msgspec.field(default="", name="silence")

    @property
    def held_out_loss(self) -> float:
        """Mean over all held-out tokens; NaN when a loss is not finite."""
        nats = [math.nan if score.nats is None else score.nats for score in self.held_out]
        return sum(nats) / max(sum(score.tokens for score in self.held_out), 1)


class Evaluation:
    """The examples and prompts that both models are evaluated on.

    `seen` is how many rows the job trains on, counting epochs; `rows` is how many training rows to
    evaluate, 0 for a share of `seen`.
    """

    def __init__(
        self,
        corpus: Corpus,
        renderer: Renderer,
        *,
        folder: JobFolder,
        seen: int,
        rows: int = 0,
        seed: int,
        compute: ComputeContext,
    ) -> None:
        self._path, self._renderer = folder.base_results, renderer
        self._device, self._dtype = compute.device, compute.measured_dtype
        self.held_out = corpus.held_out
        self.train, self.rows = _sample(corpus.train, rows or _share(seen), seed)
        self.general = general_examples(renderer)
        self.prompts = _prompts(corpus.held_out, seed)

    def base_results(self, load: Callable[[], nn.Module]) -> EvaluationResults:
        """The base's results; the base is loaded only when no earlier run of this job stored them."""
        if not self._path.exists():
            replace_file(self._path, msgspec.json.encode(self.evaluate(load())))
        return msgspec.json.decode(self._path.read_bytes(), type=EvaluationResults)

    def evaluate(self, model: nn.Module) -> EvaluationResults:
        """A model's results; its mode is restored."""
        held_out, train, general = (
            example_losses(model, rows, device=self._device, dtype=self._dtype)
            for rows in (self.held_out, self.train, self.general)
        )
        texts, error = self._answers(model)
        return EvaluationResults(held_out, train, general, texts, error)

    def _answers(self, model: nn.Module) -> tuple[list[str], str]:
        """The answers, or none and the error: a model that cannot generate must not fail the job."""
        try:
            token_ids = generate_answers(
                model,
                [ids for _, ids, _ in self.prompts],
                stop_ids=self._renderer.stop_ids,
                limit=min(LONGEST_ANSWER, 16 + max((len(reference) for _, _, reference in self.prompts), default=0)),
                device=self._device,
                dtype=self._dtype,
            )
        except Exception as error:
            return [], f"{type(error).__name__}: {str(error)[:200]}"
        return [self._renderer.decode(ids) for ids in token_ids], ""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without control tokens."""
        return self._renderer.decode(ids)


def example_losses(
    model: nn.Module, examples: Sequence[Example], *, device: torch.device, dtype: torch.dtype
) -> list[ExampleLoss]:
    """The loss of each example, in order (of a preference pair, that of the chosen answer); the
    model's mode is restored."""
    losses_by_index: dict[int, ExampleLoss] = {}
    with evaluation_mode(model, device, dtype):
        for piece in _pieces(examples):
            plain = [Example(e.ids, e.trained, e.line, e.file) for e in (examples[at] for at in piece)]
            losses = row_losses(model, collate(plain, device=device)).tolist()
            for at, example, loss in zip(piece, plain, losses, strict=True):
                losses_by_index[at] = ExampleLoss(loss if math.isfinite(loss) else None, example.targets)
    return [losses_by_index[at] for at in range(len(examples))]


def generate_answers(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    limit: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[list[int]]:
    """Greedy answers of at most `limit` tokens, without the token that ended them."""
    if not prompts:
        return []
    from transformers import GenerationConfig

    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    config = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=limit, eos_token_id=list(stop_ids) or None, pad_token_id=0,
        temperature=1.0, top_p=1.0, top_k=50, repetition_penalty=1.0,
    )  # fmt: skip
    whole: Any = model
    with evaluation_mode(model, device, dtype):
        out = whole.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config)
    return [_until_stop(row, stop_ids) for row in out[:, longest:].tolist()]


def general_examples(renderer: Renderer) -> list[Example]:
    """The general set, rendered for the base: short questions with answers; empty when the base's
    template refuses them."""
    examples = []
    for number, line in enumerate(Path(__file__).with_name("general.jsonl").read_text("utf-8").splitlines(), 1):
        row = json.loads(line)
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]
        try:
            rendered = renderer.examples(messages)
        except InvalidInput:
            return []
        examples += [Example(example.ids, example.trained, number, "general.jsonl") for example in rendered]
    return examples


def _until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((at for at, number in enumerate(ids) if number in stop_ids), len(ids))
    return list(ids[:end])


def _pieces(examples: Sequence[Example]) -> Iterator[list[int]]:
    """Indices of examples of similar length, a batch at a time."""
    piece: list[int] = []
    for at in sorted(range(len(examples)), key=lambda at: len(examples[at].ids)):
        if piece and (len(piece) == ROWS or (len(piece) + 1) * len(examples[at].ids) > TOKENS):
            yield piece
            piece = []
        piece.append(at)
    if piece:
        yield piece


def _share(seen: int) -> int:
    return min(LARGEST_SAMPLE, max(SMALLEST_SAMPLE, int(SHARE * 2.2 / 2 * seen)))


def _sample(examples: Sequence[Example], size: int, seed: int) -> tuple[list[Example], int]:
    """The examples of the sampled training rows, and how many training rows there are."""
    places = list(dict.fromkeys((example.file, example.line) for example in examples))
    if size >= len(places):
        return list(examples), len(places)
    chosen = set(random.Random(f"{seed}/report").sample(places, size))  # noqa: S311 - a sample, not a secret
    return [example for example in examples if (example.file, example.line) in chosen], len(places)


def _prompts(held_out: Sequence[Example], seed: int) -> list[tuple[Example, list[int], list[int]]]:
    """Held-out examples to answer in full, each with its prompt (all before the last trained turn)
    and its reference (that turn)."""
    spans = [(example, *example.last_answer) for example in held_out]
    fitting = [(example, example.ids[:start], example.ids[start:end]) for example, start, end in spans]
    fitting = [triple for triple in fitting if 0 < len(triple[1]) <= LONGEST_PROMPT]
    if len(fitting) <= PROMPTS_ANSWERED:
        return fitting
    chosen = random.Random(f"{seed}/answers").sample(range(len(fitting)), PROMPTS_ANSWERED)  # noqa: S311
    return [fitting[at] for at in sorted(chosen)]
