"""Every gate on a real run and on a planted fault, through the engine that serves, in the process that asks them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunery.gateway.gates import GATES, engine_gates
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import Failed, GateAnswered, JobEvent
from tunery.plugins.testing import TrainerHarness
from tunery.plugins.testing.harness import LONG
from tunery.plugins.training import load_base, resume
from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.gates import GateCase, GateRequest, GateResult, GatesFailed, run_gates
from tunery.plugins.training.gates.reference import Reference
from tunery.plugins.training.report.findings import bootstrap

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("imported", "no_picture", "forked_gates")]
NAMES = [gate.name for gate in GATES]
Edit = Callable[[dict[str, torch.Tensor]], object]


def made(folder: Path, trainer: str, **values: Any) -> TrainerHarness:
    return TrainerHarness(folder, trainer, values, load_plugins(allow=()))


class Candidate:
    """A version that passed its gates, its files, and what its gates were asked."""

    def __init__(self, folder: Path, trainer: str, **values: Any) -> None:
        self.bench, self.events = made(folder, trainer, **values), list[JobEvent]()
        self.version = self.bench.train(on_event=self.events.append, epochs=LONG)
        job = self.bench.registry.home.jobs / self.bench.registry.jobs()[0].id
        self.files = folder / "files"
        self.bench.registry.export(self.version, self.files)
        self.request = msgspec.json.decode((job / "gates.request.json").read_bytes(), type=GateRequest)

    def again(self, folder: Path, edit: Edit = lambda tensors: None, **changes: Any) -> dict[str, GateResult]:
        """The gates' results for a changed copy of the files, or a changed request."""
        copy = folder / "output"
        shutil.copytree(self.files, copy)
        tensors = load_file(copy / "adapter_model.safetensors")
        edit(tensors)
        save_file(tensors, copy / "adapter_model.safetensors")
        request = msgspec.structs.replace(self.request, folder=str(copy), **changes)
        return {result.name: result for result in run_gates(request, folder=folder)}


@pytest.fixture(scope="module")
def lora(
    tmp_path_factory: pytest.TempPathFactory, imported: None, no_picture: None, forked_gates: None
) -> Iterator[Candidate]:
    candidate = Candidate(tmp_path_factory.mktemp("lora"), "lora")
    yield candidate
    candidate.bench.registry.close()


def failures(results: dict[str, GateResult]) -> list[str]:
    return [result.code for result in results.values() if result.failed]


def states(results: dict[str, GateResult]) -> dict[str, str]:
    return {r.name: "passed" if r.passed else "skipped" if r.skipped else "failed" for r in results.values()}


# -- what is right passes ----------------------------------------------------------------------------------------------


def test_a_good_version_passes_every_gate_and_keeps_their_results(lora: Candidate) -> None:
    kept = lora.version.manifest["gates"]
    assert [gate["name"] for gate in kept] == NAMES
    results = {gate["name"]: msgspec.convert(gate, GateResult) for gate in kept}
    assert states(results) == dict.fromkeys(NAMES, "passed") | {"delta": "skipped"}
    assert "forced" not in lora.version.manifest
    assert [e.name for e in lora.events if isinstance(e, GateAnswered)] == NAMES
    served = results["served"].figures
    assert served["missed"] < 1e-4 < 1 < served["moved"]  # float32 on both sides
    assert results["stops"].figures["stopped"] == results["stops"].figures["prompts"] == 8
    improved = results["improved"].figures
    assert improved["lower"] < improved["difference"] < improved["upper"] < 0
    # What the engine measures on four bits is near what the trainer measured on none.
    assert improved["tuned_loss"] == pytest.approx(lora.version.metrics["eval_loss"], abs=0.1)


def test_gates_that_run_again_give_the_same_results(lora: Candidate, tmp_path: Path) -> None:
    before = {gate["name"]: gate for gate in lora.version.manifest["gates"]}
    assert {name: msgspec.to_builtins(result) for name, result in lora.again(tmp_path).items()} == before


@pytest.mark.parametrize("trainer", ["qlora", "full"])
def test_what_other_trainers_make_passes_too(trainer: str, tmp_path: Path) -> None:
    candidate = Candidate(tmp_path, trainer)
    results = {gate["name"]: msgspec.convert(gate, GateResult) for gate in candidate.version.manifest["gates"]}
    assert states(results)["delta"] == ("passed" if trainer == "full" else "skipped")
    assert failures(results) == []
    assert results["served"].figures["missed"] < 1e-3
    assert candidate.request.training.quant == ("nf4" if trainer == "qlora" else "none")


# -- planted faults ----------------------------------------------------------------------------------------------------


def test_a_nan_fails_as_not_finite_and_nobody_tries_to_serve_it(lora: Candidate, tmp_path: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values()))[0, 0] = torch.nan

    results = lora.again(tmp_path, edit)
    assert failures(results)[0] == "artifact_nonfinite"
    assert states(results)["served"] == states(results)["stops"] == "skipped"
    assert "not finite" in results["stops"].message


def test_an_adapter_of_zeros_is_none(lora: Candidate, tmp_path: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor.zero_()

    results = lora.again(tmp_path, edit)
    assert failures(results)[0] == "adapter_noop"
    assert "all 14 targets" in results["changed"].message
    assert results["improved"].failed
    assert results["improved"].figures["difference"] == 0


def test_one_target_without_a_change_is_named(lora: Candidate, tmp_path: Path) -> None:
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    results = lora.again(tmp_path, lambda tensors: tensors[name].zero_())
    assert failures(results)[0] == "adapter_noop"
    assert "1 of 14 targets" in results["changed"].message
    assert "model.layers.1.self_attn.v_proj" in results["changed"].message


def test_other_log_probabilities_of_the_trainer_are_a_mismatch(lora: Candidate, tmp_path: Path) -> None:
    reference = msgspec.json.decode(Path(lora.request.reference).read_bytes(), type=Reference)
    other = tmp_path / "reference.json"
    other.write_bytes(
        msgspec.json.encode(Reference(reference.rows, [[p - 0.5 for p in row] for row in reference.log_probs]))
    )
    results = lora.again(tmp_path, reference=str(other))
    assert failures(results) == ["serving_mismatch"]
    assert results["served"].figures["missed"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("factor", [0.8, 1.5])
def test_a_wrong_scale_is_a_mismatch(factor: float, lora: Candidate, tmp_path: Path) -> None:
    """As a wrong alpha does; losses hardly show it. The rows are learned so well that a tenth would not show here."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor.mul_(factor)

    assert failures(lora.again(tmp_path, edit)) == ["serving_mismatch"]


@pytest.fixture(scope="module")
def rounded(
    tmp_path_factory: pytest.TempPathFactory, imported: None, no_picture: None, forked_gates: None
) -> Iterator[Candidate]:
    """Trained in bfloat16, where two ways to compute the same thing differ by rounding."""
    candidate = Candidate(tmp_path_factory.mktemp("rounded"), "lora", precision="bfloat16")
    yield candidate
    candidate.bench.registry.close()


def test_what_is_rounding_alone_passes_however_much_it_is(rounded: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few tokens, rounding may be more than the usual allowance, which is none here."""
    monkeypatch.setitem(engine_gates.NOISE, "bfloat16", 0.0)
    monkeypatch.setitem(engine_gates.SHARE, "bfloat16", 0.0)
    case = GateCase(msgspec.structs.replace(rounded.request, folder=str(rounded.files)))
    served = engine_gates.serves_what_was_trained(case)
    assert served.state == "passed", served.message
    figures = served.figures
    assert 0 < figures["missed_exactly"] < engine_gates.ROUNDINGS * figures["rounding"]
    assert "so this is rounding" in served.message


def test_what_cannot_be_told_from_a_fault_for_want_of_memory_fails(
    rounded: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine_gates.NOISE, "bfloat16", 0.0)
    monkeypatch.setitem(engine_gates.SHARE, "bfloat16", 0.0)
    monkeypatch.setattr(engine_gates, "available_memory", lambda device: 0)
    case = GateCase(msgspec.structs.replace(rounded.request, folder=str(rounded.files)))
    assert engine_gates.serves_what_was_trained(case).state == "failed"


def test_more_than_rounding_is_a_mismatch(rounded: Candidate, tmp_path: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor.mul_(1.5)

    results = rounded.again(tmp_path, edit)
    assert failures(results) == ["serving_mismatch"]
    assert results["served"].figures["rounding"] > 0


def test_without_a_reference_nothing_is_compared_and_the_result_says_so(lora: Candidate, tmp_path: Path) -> None:
    result = lora.again(tmp_path, reference=str(tmp_path / "none"))["served"]
    assert (result.skipped, result.failed) == (True, False)
    assert "not recorded" in result.message


def as_the_base_says(candidate: Candidate) -> list[Example]:
    """The held-out prompts with the base's own greedy answers, of which nobody can think better than the base does."""
    base = load_base(Path(candidate.request.base_folder), quant="none", dtype=torch.float32, device=torch.device("cpu"))
    rows = []
    for row in candidate.request.held_out:
        prompt = row.ids[: row.trained.index(True)]
        ids: list[int] = base.generate(  # type: ignore[operator]
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=12, do_sample=False, pad_token_id=0,
        )[0].tolist()  # fmt: skip
        trained = [at >= len(prompt) for at in range(len(ids))]
        rows.append(msgspec.structs.replace(row, ids=ids, trained=trained))
    return rows


def test_an_adapter_that_is_worse_than_the_base_is_no_improvement(lora: Candidate, tmp_path: Path) -> None:
    results = lora.again(tmp_path, held_out=as_the_base_says(lora))
    assert failures(results) == ["no_improvement"]
    assert results["improved"].figures["difference"] > 0
    assert "not clearly better" in results["improved"].message


def test_few_rows_are_judged_by_their_mean_and_none_not_at_all(lora: Candidate, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    few = lora.again(tmp_path / "few", held_out=lora.request.held_out[:3])["improved"]
    assert few.passed
    assert "3 rows are too few for an interval" in few.message
    assert "upper" not in few.figures
    (tmp_path / "none").mkdir()
    none = lora.again(tmp_path / "none", held_out=[])
    assert (none["improved"].skipped, none["improved"].message) == (True, "nothing was held out")
    assert none["stops"].passed
    assert "training prompts" in none["stops"].message


def test_another_objective_is_not_judged_by_the_loss(lora: Candidate, tmp_path: Path) -> None:
    results = lora.again(tmp_path, held_out=as_the_base_says(lora), supervised=False)
    assert results["improved"].skipped
    assert failures(results) == []


def test_a_low_fidelity_is_an_unfaithful_delta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery.plugins.training.delta.HIGHEST", 0.2)
    bench = made(tmp_path, "full", learning_rate=0.003)
    with pytest.raises(GatesFailed) as caught:
        bench.train()
    assert caught.value.code == "delta_unfaithful"
    assert bench.registry.versions() == []


def test_a_model_whose_end_of_turn_was_never_trained_never_stops(tmp_path: Path) -> None:
    """Every row is so long that its end is cut off."""
    bench = made(tmp_path, "lora", max_length=23)
    with pytest.raises(GatesFailed) as caught:
        bench.train()
    assert [result.code for result in caught.value.results if result.failed] == ["never_stops"]
    assert "0 of 8" in caught.value.message
    assert bench.registry.versions() == []
    bench.registry.close()


# -- what becomes of the job -------------------------------------------------------------------------------------------


def test_a_failed_gate_leaves_the_registry_and_says_where_the_files_are(tmp_path: Path) -> None:
    bench, events = made(tmp_path, "lora", max_steps=1, learning_rate=1e-7), list[JobEvent]()
    with pytest.raises(GatesFailed) as caught:
        bench.train(on_event=events.append)
    assert caught.value.code == "never_stops"
    assert [result.code for result in caught.value.results if result.failed] == ["never_stops", "no_improvement"]
    assert (bench.registry.versions(), bench.registry.aliases("acme/tiny")) == ([], {})
    (job,) = bench.registry.jobs()
    assert job.state == "failed"
    assert job.error == caught.value.message
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "never_stops"
    folder = bench.registry.home.jobs / job.id
    assert str(folder / "output") in caught.value.message
    assert (folder / "output" / "adapter_model.safetensors").is_file()
    kept = json.loads((folder / "manifest.json").read_text())["gates"]
    assert [gate["name"] for gate in kept] == NAMES

    # Who wants it all the same is recorded.
    version = resume(job.id, registry=bench.registry, plugins=bench.plugins, on_event=events.append, forced_by="ada")
    assert (version.manifest["forced"], version.manifest["forced_by"]) == (True, "ada")
    assert [g["code"] for g in version.manifest["gates"] if not g["passed"] and not g["skipped"]] == [
        "never_stops",
        "no_improvement",
    ]
    assert bench.registry.job(job.id).state == "succeeded"
    bench.registry.close()


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_the_weighted_mean() -> None:
    noise = np.random.default_rng(1)
    tokens = noise.integers(5, 50, size=400).astype(np.float64)
    lost = tokens * (noise.normal(-0.1, 0.5, size=400))
    lower, upper = bootstrap(lost, tokens)
    mean = lost.sum() / tokens.sum()
    # The delta method's standard error of a ratio.
    error = np.sqrt(np.sum((lost - mean * tokens) ** 2)) / tokens.sum()
    assert lower == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert upper == pytest.approx(mean + 1.96 * error, abs=0.15 * error)
    assert bootstrap(lost, tokens) == (lower, upper)


def test_one_outlier_keeps_the_interval_open() -> None:
    lost, tokens = np.full(12, -0.1), np.full(12, 1.0)
    assert bootstrap(lost, tokens)[1] < 0
    lost[0] = 1.0
    assert lost.sum() < 0
    assert bootstrap(lost, tokens)[1] > 0
