"""Gates: asked in order in a fresh process, whatever becomes of it; and those that only look at files."""

from __future__ import annotations

import json
import os
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunery.plugins.discovery import load_plugins
from tunery.plugins.hookspecs import GateInfo, hookimpl
from tunery.plugins.parameters import read_parameters
from tunery.plugins.testing import TrainerHarness
from tunery.plugins.training import TrainRequest, train
from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.gates import (
    Gate,
    GateCase,
    GateRequest,
    GateResult,
    GatesFailed,
    Precision,
    check_gates,
    run_gates,
)
from tunery.plugins.training.gates.file_gates import changes_every_target, delta_is_faithful, is_finite
from tunery.plugins.training.gates.process import main
from tunery.plugins.training.job.control import signal_job

PAIR = "base_model.model.model.layers.0.self_attn.q_proj"
OTHER = "base_model.model.model.layers.1.mlp.up_proj"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two low-rank pairs of rank 2."""
    folder = tmp_path / "output"
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {f"{name}.lora_{half}.weight": torch.randn(shape) for name in (PAIR, OTHER)
               for half, shape in (("A", (2, 6)), ("B", (6, 2)))}  # fmt: skip
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    return folder


def request(folder: Path, *names: str, **values: Any) -> GateRequest:
    fields: dict[str, Any] = {
        "gates": [Gate(name, f"code_of_{name}", f"tests.plugins.training.gates.odd_gates:{name}") for name in names],
        "adapter": "acme/tiny", "folder": str(folder), "base_name": "tiny", "base_digest": "0", "base_folder": str(folder),
        "training": Precision("none", "float32"), "serving": Precision("nf4", "bfloat16"),
    }  # fmt: skip
    return GateRequest(**(fields | values))


def change(folder: Path, **tensors: torch.Tensor) -> None:
    """Rewrite some tensors, named by module and half as `OTHER_B`."""
    path = folder / "adapter_model.safetensors"
    kept = load_file(path)
    for name, tensor in tensors.items():
        module, half = name.split("_")
        kept[f"{globals()[module]}.lora_{half}.weight"] = tensor
    save_file(kept, path)


# -- the process -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gates_run_in_a_process_of_their_own_and_share_what_they_make(files: Path, tmp_path: Path) -> None:
    one, two = run_gates(request(files, "passes", "skips"), folder=tmp_path)
    assert (one.name, one.code, one.passed, one.failed) == ("passes", "code_of_passes", True, False)
    assert one.figures["process"] != os.getpid()
    assert one.figures["made"] == len("acme/tiny")
    assert (two.passed, two.skipped, two.failed, two.message) == (False, True, False, "cannot tell")
    check_gates([one, two], files)


@pytest.mark.slow
def test_every_failed_gate_is_reported_and_the_first_gives_the_code(files: Path, tmp_path: Path) -> None:
    results = run_gates(request(files, "passes", "fails", "skips", "fails"), folder=tmp_path)
    with pytest.raises(GatesFailed) as caught:
        check_gates(results, files)
    assert caught.value.code == "code_of_fails"
    assert "2 of 4 gates failed" in caught.value.message
    assert "not fine: do better" in caught.value.message
    assert str(files) in caught.value.message
    assert "--force" in caught.value.message


@pytest.mark.slow
def test_a_gate_that_cannot_run_fails_unless_another_has_failed(files: Path, tmp_path: Path) -> None:
    (alone,) = run_gates(request(files, "refuses"), folder=tmp_path)
    assert (alone.code, alone.failed, alone.message) == ("odd_code", True, "nothing to look at")
    _, after = run_gates(request(files, "fails", "refuses"), folder=tmp_path)
    assert (after.skipped, after.message) == (True, "nothing to look at")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [("is_killed", r"killed by signal 9.*about to die"), ("breaks", r"ended with 1.*my own fault")],
)
def test_a_process_that_dies_fails_the_gate_it_was_at(files: Path, tmp_path: Path, name: str, message: str) -> None:
    import re

    first, dead = run_gates(request(files, "passes", name, "skips"), folder=tmp_path)
    assert first.passed
    assert (dead.name, dead.code, dead.failed) == (name, "gate_process_failed", True)
    assert re.search(message, dead.message, re.DOTALL)


@pytest.mark.slow
def test_a_process_that_hangs_is_stopped(files: Path, tmp_path: Path) -> None:
    (dead,) = run_gates(request(files, "hangs"), folder=tmp_path, seconds=3)
    assert (dead.name, dead.code, dead.failed) == ("hangs", "gate_process_failed", True)
    assert "did not end within 3 s" in dead.message


def test_the_process_reads_a_request_and_writes_a_line_for_each_gate(files: Path, tmp_path: Path) -> None:
    request_path, results_path = tmp_path / "request", tmp_path / "results"
    request_path.write_bytes(msgspec.json.encode(request(files, "skips", "fails")))
    assert main([str(request_path), str(results_path)]) == 0
    results = [msgspec.json.decode(line, type=GateResult) for line in results_path.read_bytes().splitlines()]
    assert [(result.name, result.skipped, result.failed) for result in results] == [
        ("skips", True, False),
        ("fails", False, True),
    ]


# -- in a job ----------------------------------------------------------------------------------------------------------


def bench_with(folder: Path, *gates: GateInfo) -> TrainerHarness:
    """A bench whose plugins have these gates and no others."""

    def register_gates(register: Callable[[GateInfo], None]) -> None:
        for gate in gates:
            register(gate)

    plugins = load_plugins(allow=(), without=("gates",))
    plugins.add(types.SimpleNamespace(register_gates=hookimpl(register_gates)), "odd")
    return TrainerHarness(folder, "lora", {"max_steps": 1}, plugins)


def gate(name: str, **values: Any) -> GateInfo:
    entrypoint = f"tests.plugins.training.gates.odd_gates:{name}"
    return GateInfo(name=name, code=f"code_of_{name}", summary="", entrypoint=entrypoint, **values)


@pytest.mark.slow
def test_a_plugins_gates_run_by_priority_and_their_verdicts_are_kept(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, gate("skips"), gate("passes", priority=1))
    assert [gate["name"] for gate in bench.train().manifest["gates"]] == ["passes", "skips"]
    bench.registry.close()


@pytest.mark.slow
def test_who_forces_is_recorded_only_where_something_was_forced(tmp_path: Path) -> None:
    for number, (name, forced) in enumerate((("fails", True), ("passes", None))):
        bench = bench_with(tmp_path / str(number), gate(name))
        request = TrainRequest(
            adapter="acme/tiny", trainer="lora", base=bench.base.digest, data=(str(bench.rows),), force=True, actor="ada",
            parameters={"max_steps": 1, "precision": "float32"},
        )  # fmt: skip
        parameters = read_parameters(bench.plugins.trainer("lora").parameters, request.parameters)
        version = train(
            request, parameters, registry=bench.registry, plugins=bench.plugins, on_event=lambda event: None
        )
        assert (version.manifest.get("forced"), version.manifest.get("forced_by")) == (forced, forced and "ada")
        bench.registry.close()


@pytest.mark.slow
def test_a_job_is_cancelled_while_its_gates_run(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, gate("hangs"))
    pid: list[int] = []

    def cancel() -> None:
        deadline = time.monotonic() + 60
        while not pid and time.monotonic() < deadline:
            time.sleep(0.1)
            pid.extend(int(path.read_text() or 0) for path in bench.registry.home.jobs.glob("*/output/pid"))
        signal_job(JobFolder(bench.registry.home.jobs / bench.registry.jobs()[0].id), "cancel")

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        bench.train()
    thread.join()
    assert bench.registry.jobs()[0].state == "cancelled"
    assert bench.registry.versions() == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid[0], 0)
    bench.registry.close()


# -- files -------------------------------------------------------------------------------------------------------------


def test_finite_files_pass(files: Path) -> None:
    verdict = is_finite(GateCase(request(files)))
    assert (verdict.state, verdict.figures) == ("passed", {"tensors": 4.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_found_in_any_file(files: Path, value: float) -> None:
    inner = files / "model"
    inner.mkdir()
    save_file({"fine": torch.ones(3), "bad": torch.tensor([1.0, value])}, inner / "model.safetensors")
    verdict = is_finite(GateCase(request(files)))
    assert verdict.state == "failed"
    assert "model/model.safetensors: bad holds NaN" in verdict.message


def test_targets_that_change_pass(files: Path) -> None:
    verdict = changes_every_target(GateCase(request(files)))
    assert (verdict.state, verdict.figures) == ("passed", {"targets": 2.0, "zero": 0.0})


def test_a_product_of_zero_is_named(files: Path) -> None:
    change(files, OTHER_B=torch.zeros(6, 2))
    verdict = changes_every_target(GateCase(request(files)))
    assert verdict.state == "failed"
    assert "1 of 2 targets are changed by exactly nothing: model.layers.1.mlp.up_proj;" in verdict.message
    change(files, PAIR_A=torch.zeros(2, 6))
    verdict = changes_every_target(GateCase(request(files)))
    assert "all 2 targets are changed by exactly nothing" in verdict.message


def test_a_product_is_zero_though_neither_half_is(files: Path) -> None:
    left, right = torch.tensor([[1.0, 0.0]] * 6), torch.tensor([[0.0] * 6, [1.0] * 6])
    change(files, OTHER_A=right, OTHER_B=left)
    assert changes_every_target(GateCase(request(files))).figures["zero"] == 1.0


def test_a_small_change_is_a_change(files: Path) -> None:
    change(files, OTHER_B=torch.full((6, 2), 1e-30))
    assert changes_every_target(GateCase(request(files))).state == "passed"


def test_files_without_a_pair_change_nothing(files: Path) -> None:
    save_file({}, files / "adapter_model.safetensors")
    verdict = changes_every_target(GateCase(request(files)))
    assert verdict.state == "failed"
    assert "no low-rank pair" in verdict.message


def test_what_a_delta_leaves_out_is_a_target_without_a_change(files: Path) -> None:
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.left_out.weight")
    base = files.parent / "base"
    base.mkdir()
    save_file(
        {**{name: torch.ones(6, 6) for name in names}, "model.norm.weight": torch.ones(6)}, base / "m.safetensors"
    )
    full = {"base_folder": str(base), "metrics": {"delta_energy_kept": 0.9}}
    verdict = changes_every_target(GateCase(request(files, **full)))
    assert "1 of 3 targets are changed by exactly nothing: model.left_out;" in verdict.message


@pytest.mark.parametrize(
    ("metrics", "parameters", "state"),
    [
        ({"delta_fidelity": 0.96}, {"fidelity": 0.95}, "passed"),
        ({"delta_fidelity": 0.948}, {"fidelity": 0.95}, "passed"),
        ({"delta_fidelity": 0.90}, {"fidelity": 0.95}, "failed"),
        ({}, {"fidelity": 0.95}, "skipped"),
        ({}, {"r": 16}, "skipped"),
    ],
)
def test_a_delta_keeps_what_was_asked_for(
    files: Path, metrics: dict[str, float], parameters: dict[str, Any], state: str
) -> None:
    verdict = delta_is_faithful(GateCase(request(files, metrics=metrics, parameters=parameters)))
    assert verdict.state == state


def test_a_request_reads_back_as_it_was_written(files: Path) -> None:
    one = request(files, "passes", held_out=[Example([1, 2], [False, True], 3, "rows.jsonl")])
    assert msgspec.json.decode(msgspec.json.encode(one), type=GateRequest) == one
