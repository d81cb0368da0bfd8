"""A trainer in a registry of its own, with the tiny base and rows to train on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import EventSink
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import TrainingParameters, read_parameters
from tunery.plugins.testing.rows import write_rows
from tunery.plugins.testing.tiny_base import make_tiny_base
from tunery.registry import Base, Version
from tunery.registry.home import Home
from tunery.registry.registry import Registry

__all__ = ["TrainerHarness", "with_adapter"]

LONG = 32
"""Epochs after which the tiny base has surely learned to end its answers."""


class TrainerHarness:
    """One trainer, ready to run: a registry in `folder`, the tiny base, and 40 rows that `write(path, rows)` writes.

    `values` are the trainer's parameters. With `parent_trainer`, every run continues from a version that this trainer
    made.
    """

    def __init__(
        self,
        folder: Path,
        trainer: str,
        values: dict[str, Any],
        plugins: Plugins | None = None,
        *,
        write: Callable[[Path, int], Path] = write_rows,
        parent_trainer: str | None = None,
    ) -> None:
        from tunery.plugins.bases.resolve import resolve_base

        self.trainer, self.values = trainer, values
        # Gates start a process for every version, and few of the many runs here need them; see `gated`.
        self.plugins = plugins or load_plugins(without=("gates",))
        self.registry = Registry.open(Home(folder / "home"))
        (folder / "base").mkdir(parents=True)
        self.base: Base = resolve_base(
            str(make_tiny_base(folder / "base")), registry=self.registry, plugins=self.plugins, name="tiny"
        )
        self.rows = write(folder / "rows.jsonl", 40)
        self.folder = folder
        self.parent: Version | None = None
        if parent_trainer:
            answers = write_rows(folder / "answers.jsonl", 40)
            self.parent = self._train(parent_trainer, answers, {"epochs": LONG}, lambda event: None, None)

    def train(self, *, on_event: EventSink = lambda event: None, **parameters: Any) -> Version:
        """Train a version of `acme/tiny` on the rows."""
        return self._train(self.trainer, self.rows, self.values | parameters, on_event, self.parent)

    def _train(
        self,
        trainer: str,
        rows: Path,
        parameters: dict[str, Any],
        on_event: EventSink,
        parent: Version | None,
    ) -> Version:
        from tunery.plugins.training import TrainRequest, train

        fixed = {"precision": "float32", "batch_size": 4, "eval_fraction": 0.2, "checkpoint_every": 3}
        values = {"learning_rate": 0.003, "epochs": 6} | fixed | parameters
        request = TrainRequest(
            adapter="acme/tiny", trainer=trainer, base=self.base.digest, data=(str(rows),), parameters=values,
            parent=parent.name if parent else None,
        )  # fmt: skip
        kind = self.plugins.trainer(trainer).parameters
        chosen = read_parameters(kind, values)
        return train(request, chosen, registry=self.registry, plugins=self.plugins, on_event=on_event)

    @cached_property
    def gated(self) -> Version:
        """A version that has learned to end its answers, by long training or from its parent, and has passed the gates.

        Trained once. Raises GatesFailed where they would not let it be published.
        """
        without_gates, self.plugins = self.plugins, load_plugins()
        try:
            return self.train() if self.parent else self.train(epochs=LONG)
        finally:
            self.plugins = without_gates

    @cached_property
    def version(self) -> Version:
        """The version of one whole run, trained once."""
        return self.train()

    def prompts(self) -> list[list[int]]:
        """Eight prompts that were not trained on, as token ids."""
        from tunery.plugins.data.render.renderer import Renderer

        renderer = Renderer(Path(self.base.path))
        return [renderer.prompt_ids([{"role": "user", "content": f"item {n}"}]) for n in range(60, 68)]

    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn."""
        from tunery.plugins.data.render.renderer import Renderer

        return Renderer(Path(self.base.path)).stop_ids

    def served(self, version: Version) -> Any:
        """The model that a version serves: PEFT on the base, in float32 on the CPU."""
        import torch

        from tunery.plugins.training import load_base

        folder = self.folder / f"served-{version.number}"
        self.registry.export(version, folder)
        base = load_base(Path(self.base.path), quant="none", dtype=torch.float32, device=torch.device("cpu"))
        return with_adapter(base, folder).eval()

    def saved_loss(self, version: Version) -> float | None:
        """The held-out loss of a version's files, measured as the recorded one was; None where the loss is not
        cross-entropy."""
        import torch

        from tunery.plugins.descriptors import load_entrypoint
        from tunery.plugins.training import load_base
        from tunery.plugins.training.objectives.loss import mean_loss
        from tunery.plugins.training.objectives.objective import Supervised, objective_of

        info = self.plugins.trainer(self.trainer)
        trainer = load_entrypoint(info.entrypoint)()
        if not isinstance(objective_of(trainer, read_parameters(info.parameters, self.values)), Supervised):
            return None
        folder = self.folder / f"saved-{version.number}"
        self.registry.export(version, folder)
        cpu, dtype = torch.device("cpu"), getattr(torch, version.manifest["precision"]["measured"])
        base = load_base(Path(self.base.path), quant=trainer.quant, dtype=dtype, device=cpu)
        rows = self.corpus(held_out=0.2).held_out
        return mean_loss(with_adapter(base, folder), rows, batch_size=4, device=cpu, dtype=dtype)

    def corpus(self, *, held_out: float = 0.0) -> Any:
        """The rows, tokenized; `held_out` is the share of them to hold out."""
        from tunery.plugins.data.render.renderer import Renderer
        from tunery.plugins.training.examples.corpus import read_corpus

        return read_corpus(
            [self.rows],
            None,
            TrainingParameters(max_length=512, eval_fraction=held_out),
            formats=self.plugins.formats(),
            renderer=Renderer(Path(self.base.path)),
            preferences=self.plugins.trainer(self.trainer).learns_from_pairs,
        )


def with_adapter(base: Any, folder: Path) -> Any:
    """The base with the adapter in `folder`, as PEFT loads it."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # A delta holds a tied head's pair twice, embedding and head, on purpose.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True")
        return PeftModel.from_pretrained(base, str(folder))
