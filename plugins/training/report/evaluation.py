"""Owns asking base and tuned model the same: held-out rows, a sample of the training rows, general skills, a few answers in full.

What the base said is kept with the job, so that a resumed one goes on with the very same numbers. Nothing here draws from the random
states that training depends on.
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
from tunery.plugins.training.objectives.loss import asking, row_losses
from tunery.registry.errors import InvalidInput

__all__ = ["Examination", "Said", "Score", "answers", "general_examples", "score"]

ROWS, TOKENS = 32, 2048
"""What goes through the model at once: so many rows, and so many tokens where it is not one row alone."""
LARGEST_SAMPLE, SMALLEST_SAMPLE, SHARE = 1000, 64, 0.1
"""Training rows looked at: so many that both looks cost about SHARE of the training (a row's step is about 2.2 looks), between these."""
ASKED, LONGEST_ANSWER, LONGEST_PROMPT = 6, 128, 1024
"""Held-out prompts answered in full, and tokens of each."""


class Score(msgspec.Struct, frozen=True, array_like=True):
    """The summed loss of an example in nats (None where it is no finite number), and over how many tokens."""

    nats: float | None
    tokens: int


class Said(msgspec.Struct, frozen=True):
    """What one model made of everything: scores in the order of the examples, and answers to the prompts.

    Where the model could not answer, `answers` are empty and `silence` says why.
    """

    held_out: list[Score]
    train: list[Score]
    general: list[Score]
    answers: list[str]
    silence: str = ""

    @property
    def held_out_loss(self) -> float:
        """Mean over all held-out tokens; NaN where one of the losses is no finite number."""
        nats = [math.nan if score.nats is None else score.nats for score in self.held_out]
        return sum(nats) / max(sum(score.tokens for score in self.held_out), 1)


class Examination:
    """The questions: the same for both models.

    `seen` is how many rows the job trains on, epochs counted, and `rows` how many training rows to look at, 0 for a share of it.
    """

    def __init__(
        self,
        corpus: Corpus,
        renderer: Renderer,
        *,
        folder: Path,
        seen: int,
        rows: int = 0,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._path, self._device, self._dtype, self._renderer = folder / "base.json", device, dtype, renderer
        self.held_out = corpus.held_out
        self.train, self.rows = _sample(corpus.train, rows or _share(seen), seed)
        self.general = general_examples(renderer)
        self.prompts = _prompts(corpus.held_out, seed)

    def before(self, load: Callable[[], nn.Module]) -> Said:
        """What the base says, which is loaded only where no earlier run of this job kept it."""
        if not self._path.exists():
            staged = self._path.with_suffix(".new")
            staged.write_bytes(msgspec.json.encode(self.ask(load())))
            staged.replace(self._path)
        return msgspec.json.decode(self._path.read_bytes(), type=Said)

    def ask(self, model: nn.Module) -> Said:
        """What a model says; it is left as it was."""
        held_out, train, general = (
            score(model, rows, device=self._device, dtype=self._dtype)
            for rows in (self.held_out, self.train, self.general)
        )
        texts, silence = self._answers(model)
        return Said(held_out, train, general, texts, silence)

    def _answers(self, model: nn.Module) -> tuple[list[str], str]:
        """Texts, and why there are none: no kind of model must fail a job because it cannot generate."""
        try:
            said = answers(
                model,
                [ids for _, ids, _ in self.prompts],
                stop_ids=self._renderer.stop_ids,
                limit=min(LONGEST_ANSWER, 16 + max((len(reference) for _, _, reference in self.prompts), default=0)),
                device=self._device,
                dtype=self._dtype,
            )
        except Exception as error:
            return [], f"{type(error).__name__}: {str(error)[:200]}"
        return [self._renderer.decode(ids) for ids in said], ""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, control tokens left out."""
        return self._renderer.decode(ids)


def score(model: nn.Module, examples: Sequence[Example], *, device: torch.device, dtype: torch.dtype) -> list[Score]:
    """The loss of each example, of a pair's better half, in their order; the model's mode is restored."""
    found: dict[int, Score] = {}
    with asking(model, device, dtype):
        for piece in _pieces(examples):
            plain = [Example(e.ids, e.trained, e.line, e.file) for e in (examples[at] for at in piece)]
            losses = row_losses(model, collate(plain, device=device)).tolist()
            for at, example, loss in zip(piece, plain, losses, strict=True):
                found[at] = Score(loss if math.isfinite(loss) else None, example.targets)
    return [found[at] for at in range(len(examples))]


def answers(
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
    with asking(model, device, dtype):
        out = whole.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config)
    return [_until_stop(row, stop_ids) for row in out[:, longest:].tolist()]


def general_examples(renderer: Renderer) -> list[Example]:
    """The general set as the base sees it: short questions with answers, none where its template refuses them."""
    found = []
    for number, line in enumerate(Path(__file__).with_name("general.jsonl").read_text("utf-8").splitlines(), 1):
        row = json.loads(line)
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]
        try:
            rendered = renderer.examples(messages)
        except InvalidInput:
            return []
        found += [Example(example.ids, example.trained, number, "general.jsonl") for example in rendered]
    return found


def _until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((at for at, number in enumerate(ids) if number in stop_ids), len(ids))
    return list(ids[:end])


def _pieces(examples: Sequence[Example]) -> Iterator[list[int]]:
    """Positions of examples of like length, as many as go through the model at once."""
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
    """The examples of the training rows to look at, and how many rows there are."""
    places = list(dict.fromkeys((example.file, example.line) for example in examples))
    if size >= len(places):
        return list(examples), len(places)
    chosen = set(random.Random(f"{seed}/report").sample(places, size))  # noqa: S311 - a sample, not a secret
    return [example for example in examples if (example.file, example.line) in chosen], len(places)


def _prompts(held_out: Sequence[Example], seed: int) -> list[tuple[Example, list[int], list[int]]]:
    """Held-out examples to answer in full, with prompt and reference: up to the last trained turn, and that turn."""
    spans = [(example, *example.last_answer) for example in held_out]
    fitting = [(example, example.ids[:start], example.ids[start:end]) for example, start, end in spans]
    fitting = [found for found in fitting if 0 < len(found[1]) <= LONGEST_PROMPT]
    if len(fitting) <= ASKED:
        return fitting
    chosen = random.Random(f"{seed}/answers").sample(range(len(fitting)), ASKED)  # noqa: S311
    return [fitting[at] for at in sorted(chosen)]
