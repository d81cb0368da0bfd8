"""The conformance suite for trainers: subclass it in a test file of your plugin and run pytest; under a minute on a CPU.

    from tunery.plugins.testing import TrainerConformance

    class TestDora(TrainerConformance):
        trainer = "dora"

It trains on a tiny random base that it makes itself, so it needs no download. It proves that the loss falls, that a run repeats to
the bit and resumes to the bit, that the end of a turn is learned, that what is saved answers as what was trained and has the recorded loss, that the gates let it
pass, that a run stops when it is told to, and that unknown parameters are refused. A trainer of preferences passes `PreferenceConformance`.
"""

# A test suite: it asserts, and its randomness hides nothing.
# ruff: noqa: S101, S311

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tunery.plugins.events import EventSink, JobEvent, StepCompleted
from tunery.plugins.manager import Plugins, load_plugins
from tunery.plugins.parameters import read_parameters
from tunery.registry import Base, Version
from tunery.registry.errors import InvalidInput
from tunery.registry.home import Home
from tunery.registry.registry import Registry

__all__ = [
    "PreferenceConformance",
    "TrainerBench",
    "TrainerConformance",
    "make_tiny_base",
    "write_pairs",
    "write_rows",
]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password? Please open the settings page.",
    '{"team": "billing", "priority": "high"} invoices, refunds and tickets',
    "Return the number of items; raise ValueError when there are none.",
]

LONG = 16
"""Epochs after which the tiny base has surely learned to end its answers."""
FAITHFUL = 0.05
"""The share of the tuned model's divergence from the base that what is saved may differ by."""
RECORDED = {"float32": 1e-4, "bfloat16": 1e-2}
"""The share of a loss by which two ways to compute it may differ, in each precision."""


def make_tiny_base(folder: Path) -> Path:
    """Save a random two-layer Llama with a byte-level tokenizer and a ChatML template, as transformers would; the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = _save_tokenizer(folder)
    generator = torch.get_rng_state()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # A head this large lets adapters of the layers below it change what is said.
    model.lm_head.weight.data.mul_(10)
    model.save_pretrained(folder)
    torch.set_rng_state(generator)
    return folder


def write_rows(path: Path, rows: int, *, start: int = 0) -> Path:
    """Questions whose answers follow a simple rule, as chat rows."""
    with path.open("w") as file:
        for number in range(start, start + rows):
            messages = [
                {"role": "user", "content": f"item {number}"},
                {"role": "assistant", "content": _answer(number)},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def write_pairs(path: Path, rows: int, *, start: int = 0) -> Path:
    """The same questions, with the same answers preferred to one that says nothing, as preference rows."""
    with path.open("w") as file:
        for number in range(start, start + rows):
            row = {"prompt": f"item {number}", "chosen": _answer(number), "rejected": "who can say"}
            file.write(json.dumps(row) + "\n")
    return path


def _answer(number: int) -> str:
    return "even ticket" if number % 2 == 0 else "odd invoice refunds"


class _Killed(BaseException):
    """Stands for the end of the process."""


class TrainerBench:
    """One trainer, a registry of its own, the tiny base and some rows, which `write(path, rows)` writes.

    `teacher` names a trainer of answers where a version of its own is to be continued from.
    """

    def __init__(
        self,
        folder: Path,
        trainer: str,
        values: dict[str, Any],
        plugins: Plugins | None = None,
        *,
        write: Callable[[Path, int], Path] = write_rows,
        teacher: str | None = None,
    ) -> None:
        from tunery.plugins.bases.resolve import resolve_base

        self.trainer, self.values = trainer, values
        # Runs are many here; `gates` is one that asks them.
        self.plugins = plugins or load_plugins(without=("gates",))
        self.registry = Registry.open(Home(folder / "home"))
        (folder / "base").mkdir(parents=True)
        self.base: Base = resolve_base(
            str(make_tiny_base(folder / "base")), registry=self.registry, plugins=self.plugins, name="tiny"
        )
        self.rows = write(folder / "rows.jsonl", 40)
        self.folder = folder
        self.parent: Version | None = None
        if teacher:
            answers = write_rows(folder / "answers.jsonl", 40)
            self.parent = self._train(teacher, answers, {"epochs": LONG}, lambda event: None, None)

    def train(self, *, on_event: EventSink = lambda event: None, **parameters: Any) -> Version:
        """A version of `acme/tiny`."""
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
        values = {"learning_rate": 0.01, "epochs": 6} | fixed | parameters
        request = TrainRequest(
            adapter="acme/tiny", trainer=trainer, base=self.base.digest, data=(str(rows),), parameters=values,
            parent=parent.name if parent else None,
        )  # fmt: skip
        kind = self.plugins.trainer(trainer).parameters
        chosen = read_parameters(kind, values)
        return train(request, chosen, registry=self.registry, plugins=self.plugins, on_event=on_event)

    def train_well(self) -> Version:
        """A version that has learned to end its answers: by itself, or from its parent."""
        return self.train() if self.parent else self.train(epochs=LONG)

    def gates(self) -> list[dict[str, Any]]:
        """What the gates say of one more run; raise GatesFailed where they would not let it be published."""
        mine, self.plugins = self.plugins, load_plugins()
        try:
            found: list[dict[str, Any]] = self.train_well().manifest["gates"]
        finally:
            self.plugins = mine
        return found

    @cached_property
    def version(self) -> Version:
        """One whole run."""
        return self.train()

    def prompts(self) -> list[list[int]]:
        """Prompts that were not trained on, as token ids."""
        from tunery.plugins.data.render.renderer import Renderer

        renderer = Renderer(Path(self.base.path))
        return [renderer.prompt_ids([{"role": "user", "content": f"item {n}"}]) for n in range(60, 68)]

    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn."""
        from tunery.plugins.data.render.renderer import Renderer

        return Renderer(Path(self.base.path)).stop_ids

    def served(self, version: Version) -> Any:
        """What a version serves: PEFT on the base in float32."""
        import torch

        from tunery.plugins.training import load_base

        folder = self.folder / f"served-{version.number}"
        self.registry.export(version, folder)
        base = load_base(Path(self.base.path), quant="none", dtype=torch.float32, device=torch.device("cpu"))
        return _with_adapter(base, folder).eval()

    def saved_loss(self, version: Version) -> float | None:
        """The held-out loss of a version's files on the base, measured as the version's own; None for a trainer whose loss is another."""
        import torch

        from tunery.plugins.manager import load_entrypoint
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
        rows = _corpus(self, held_out=0.2).held_out
        return mean_loss(_with_adapter(base, folder), rows, batch_size=4, device=cpu, dtype=dtype)


class TrainerConformance:
    """What every trainer must do; set `trainer` to its name, and `values` to parameters it needs to learn the tiny task.

    Rows of another kind are written by overriding `write`; with `teacher`, the name of a trainer of answers, every run continues
    from a version of that one's.
    """

    trainer: ClassVar[str]
    values: ClassVar[dict[str, Any]] = {}
    teacher: ClassVar[str | None] = None

    @classmethod
    def write(cls, path: Path, rows: int) -> Path:
        """A file of so many rows that the trainer can learn from."""
        return write_rows(path, rows)

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerBench]:
        """The trainer at work, made once for all of the class."""
        folder = tmp_path_factory.mktemp("conformance")
        found = TrainerBench(folder, cls.trainer, dict(cls.values), write=cls.write, teacher=cls.teacher)
        yield found
        found.registry.close()

    def test_the_held_out_loss_falls(self, bench: TrainerBench) -> None:
        """It learns."""
        metrics = bench.version.metrics
        assert metrics["eval_loss"] < 0.8 * metrics["base_loss"]

    def test_a_run_repeats_to_the_bit(self, bench: TrainerBench) -> None:
        """The same inputs, the same digest."""
        assert bench.train().digest == bench.version.digest

    def test_a_killed_run_resumes_to_the_bit(self, bench: TrainerBench) -> None:
        """Killed at a random step and resumed, the digest is the uninterrupted run's."""
        from tunery.plugins.training import resume

        step = random.randint(4, 40)

        def die(event: JobEvent) -> None:
            if isinstance(event, StepCompleted) and event.step == step:
                raise _Killed

        with pytest.raises(_Killed):
            bench.train(on_event=die)
        job = bench.registry.jobs()[0]
        again = resume(job.id, registry=bench.registry, plugins=bench.plugins, on_event=lambda event: None)
        assert again.digest == bench.version.digest, f"killed at step {step}"

    def test_the_end_of_a_turn_is_learned(self, bench: TrainerBench) -> None:
        """Greedy answers end by themselves."""
        import torch

        model = bench.served(bench.train_well())
        for prompt in bench.prompts():
            out = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=40,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=list(bench.stop_ids()),
            )
            assert int(out[0, -1]) in bench.stop_ids(), "an answer did not end within 40 tokens"

    def test_what_is_saved_answers_as_what_was_trained(self, bench: TrainerBench, tmp_path: Path) -> None:
        """The saved files on the base give the live model's distributions, as far as they moved from the base's."""
        live, saved, base = _distributions(bench, tmp_path)
        moved, missed = _divergence(live, base), _divergence(live, saved)
        assert moved > 0, "training changed nothing"
        assert missed < FAITHFUL * moved

    def test_the_recorded_loss_is_that_of_what_is_saved(self, bench: TrainerBench) -> None:
        """Where steps compute in bfloat16 too: a version's held-out loss is that of its files, in the precision that it names."""
        version = bench.train(precision="bfloat16", max_steps=6)
        found = bench.saved_loss(version)
        recorded = version.metrics.get("delta_loss", version.metrics["eval_loss"])
        bound = RECORDED[version.manifest["precision"]["measured"]]
        assert found is None or abs(found - recorded) < bound * recorded

    def test_what_it_makes_passes_the_gates(self, bench: TrainerBench) -> None:
        """A fresh process, in which the real engine serves the files in four bits, lets them be published."""
        states = {gate["name"]: gate["passed"] or gate["skipped"] for gate in bench.gates()}
        assert states
        assert all(states.values())

    def test_a_run_stops_when_it_is_told_to(self, bench: TrainerBench) -> None:
        """Asked to cancel, it ends long before its last step, and the registry stays as it was."""
        from tunery.plugins.training.folder import JobFolder
        from tunery.plugins.training.job.control import signal_job

        before, steps = len(bench.registry.versions()), 100_000
        done: list[int] = []

        def step(event: JobEvent) -> None:
            if isinstance(event, StepCompleted):
                done.append(event.step)
                if len(done) == 1:
                    signal_job(JobFolder(bench.registry.home.jobs / bench.registry.jobs()[0].id), "cancel")

        with pytest.raises(KeyboardInterrupt, match="was cancelled"):
            bench.train(on_event=step, max_steps=steps, eval_every=0, checkpoint_every=0)
        assert done[-1] < steps // 10
        assert bench.registry.jobs()[0].state == "cancelled"
        assert len(bench.registry.versions()) == before

    def test_unknown_parameters_are_refused_with_near_ones(self, bench: TrainerBench) -> None:
        """A misspelt name is an error that says what was meant."""
        kind = bench.plugins.trainer(self.trainer).parameters
        with pytest.raises(InvalidInput, match="learning_rate"):
            read_parameters(kind, {"learning_rat": 1.0})


class PreferenceConformance(TrainerConformance):
    """What every trainer of preferences must do: the same, on pairs, continuing from a version that learned to answer.

    So that answers end is to be kept here, not to be learned.
    """

    teacher = "lora"

    @classmethod
    def write(cls, path: Path, rows: int) -> Path:
        """Pairs of answers."""
        return write_pairs(path, rows)

    def test_held_out_pairs_are_told_apart(self, bench: TrainerBench) -> None:
        """The better of two answers gains on the worse, which the model it starts from has as the zero of that scale."""
        metrics = bench.version.metrics
        assert metrics["base_preference_accuracy"] == 0.5
        assert metrics["preference_accuracy"] > 0.9
        assert metrics["reward_margin"] > 0


def _distributions(bench: TrainerBench, folder: Path) -> tuple[Any, Any, Any]:
    """Log-probabilities [tokens, vocabulary] over the prompts: of the live model, of what it saves, of the base."""
    import torch

    from tunery.plugins.manager import load_entrypoint
    from tunery.plugins.training import LoadContext, SaveContext, load_base
    from tunery.plugins.training.folder import JobFolder
    from tunery.plugins.training.loop.compute import ComputeContext
    from tunery.plugins.training.loop.loop import Loop
    from tunery.plugins.training.objectives.objective import objective_of
    from tunery.plugins.training.trainer import load_trained

    kind = bench.plugins.trainer(bench.trainer).parameters
    parameters: Any = read_parameters(
        kind, {"learning_rate": 0.01, "max_steps": 20, "batch_size": 4, "precision": "float32"} | bench.values
    )
    cpu, base_folder = torch.device("cpu"), Path(bench.base.path)
    trainer = load_entrypoint(bench.plugins.trainer(bench.trainer).entrypoint)()
    context = LoadContext(base_folder=base_folder, parameters=parameters, device=cpu, dtype=torch.float32, parent=None)
    torch.manual_seed(0)
    model = load_trained(trainer, context)
    rows, objective = _corpus(bench).train, objective_of(trainer, parameters)
    objective.prepare(model, (rows, ()), path=folder / "reference.json", device=cpu, dtype=torch.float32)
    Loop(
        model,
        rows,
        parameters,
        compute=ComputeContext(device=cpu, dtype=torch.float32, measured_dtype=torch.float32),
        folder=JobFolder(folder),
        fingerprint="",
        objective=objective,
    ).run()
    live = _log_probabilities(model, bench.prompts())
    output = folder / "output"
    output.mkdir()
    trainer.save(model, output, SaveContext(load=context, evaluate=None, base_loss=None, eval_loss=None))
    base = load_base(base_folder, quant=trainer.quant, dtype=torch.float32, device=cpu)
    before = _log_probabilities(base, bench.prompts())
    saved = _log_probabilities(_with_adapter(base, output), bench.prompts())
    return live, saved, before


def _with_adapter(base: Any, folder: Path) -> Any:
    """The base as PEFT gives it the adapter in `folder`."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # A delta holds a tied head's pair twice, embedding and head, on purpose.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True")
        return PeftModel.from_pretrained(base, str(folder))


def _corpus(bench: TrainerBench, *, held_out: float = 0.0) -> Any:
    from tunery.plugins.data.render.renderer import Renderer
    from tunery.plugins.training.examples.corpus import read_corpus

    return read_corpus(
        [bench.rows], None, formats=bench.plugins.formats(), renderer=Renderer(Path(bench.base.path)), max_length=512,
        eval_fraction=held_out, seed=0, preferences="preference" in bench.plugins.trainer(bench.trainer).methods,
    )  # fmt: skip


def _log_probabilities(model: Any, prompts: list[list[int]]) -> Any:
    import torch

    model.eval()
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0] for prompt in prompts]
    return torch.cat(logits).float().log_softmax(-1)


def _divergence(of: Any, other: Any) -> float:
    """Mean Kullback-Leibler divergence in nats a token."""
    return float((of.exp() * (of - other)).sum(-1).mean())


def _save_tokenizer(folder: Path) -> int:
    """Train and save a small byte-level tokenizer; its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>", "chat_template": CHATML,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(tokenizer.get_vocab_size())
