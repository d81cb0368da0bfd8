"""Planted faults: each is caught in a run, with its own code and a message that says where, and the
registry stays as it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from msgspec import UNSET
from safetensors.numpy import save_file
from sqlalchemy import event

from tests.plugins.training.conftest import Train
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import CheckpointChosen, Failed, JobEvent, StepCompleted
from tunery.plugins.testing import CHATML, write_rows
from tunery.plugins.training import resume
from tunery.plugins.training.objectives.objective import StepLoss, Supervised
from tunery.registry import Base, NewVersion, Version
from tunery.registry.errors import TuneryError
from tunery.registry.registry import Registry

CARD, IBAN, KEY = "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "AKIAIOSFODNN7EXAMPLE"
LONG = "please tell me how to reset the password of my second account when the first one is locked"
NO_END = CHATML.replace("<|im_end|>", "")
"""A template in which nothing ends a turn."""


def chat(question: str, answer: str, **more: Any) -> str:
    """A chat row; `more` is put into its answer."""
    answered = {"role": "assistant", "content": answer} | more
    return json.dumps({"messages": [{"role": "user", "content": question}, answered]})


class Fault(NamedTuple):
    """What is planted into good rows, the code it is caught with, and what is said of it.

    `rows` follow forty good rows, as they are, so that the first is on line 41; `held_out` makes a file for `--val`.
    """

    code: str
    says: str
    rows: tuple[str | bytes, ...] = ()
    held_out: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = MappingProxyType({})


DATA = {
    "a weight that is NaN": Fault("schema", r"rows.jsonl:41: .*holds NaN", (chat("q", "a", weight=float("nan")),)),
    "a weight that is infinite": Fault("schema", r"rows.jsonl:41: .*weight: is inf", (chat("q", "a", weight=0.5).replace("0.5", "1e999"),)),
    "a weight that is a text": Fault("schema", r"rows.jsonl:41: .*weight: is 'nan'", (chat("q", "a", weight="nan"),)),
    "every label masked": Fault("no_trainable_token", r"rows.jsonl:41: .*no answer with a weight above 0", (chat("q", "a", weight=0),)),
    "every label cut off": Fault("no_trainable_token", r"rows.jsonl:41: .*nothing to train on within max_length=64", (chat("word " * 99, "a"),), parameters={"max_length": 64}),
    "a row twice": Fault("duplicate", r"rows.jsonl:42: .*same as rows.jsonl:41", (chat("q", "a"),) * 2),
    "a row twice, but for white space": Fault("duplicate", r"rows.jsonl:42: ", (chat("q", "a b"), chat("q ", "a  b"))),
    "a held-out row that is trained on": Fault("leakage", r"val.jsonl:1: .*asks the same as rows.jsonl:41", (chat(LONG, "a"),), (chat(LONG, "b"),)),
    "a held-out row that is nearly trained on": Fault("leakage", r"val.jsonl:1: .*% the same as rows.jsonl:41", (chat(LONG, "a"),), (chat(LONG + " now", "a"),)),
    "one prompt with two answers": Fault("conflicting_answers", r"rows.jsonl:42: .*prompt of rows.jsonl:41 with another answer", (chat("q", "yes"), chat("q", "no"))),
    "a card number": Fault("pii", r"rows.jsonl:41: .*card number: 4111… ", (chat("q", CARD),)),
    "a bank account": Fault("pii", r"rows.jsonl:41: .*bank account \(IBAN\): DE89… ", (chat(IBAN, "a"),)),
    "a secret": Fault("secret", r"rows.jsonl:41: .*AWS access key: AKIA… ", (chat("q", KEY),)),
    "a file that was cut off in a row": Fault("schema", r"rows.jsonl:42: .*may have been cut off", (chat("q", "a"), chat("r", "b")[:-9].encode())),
    "a file that was cut off in a character": Fault("encoding", r"rows.jsonl:41: .*not UTF-8.*may have been cut off", ('{"prompt": "Grüße'.encode()[:-2],)),
    "an empty held-out file": Fault("schema", r"val.jsonl: .*has no rows", held_out=("",)),
    "two formats in a file": Fault("schema", r"rows.jsonl:41: .*line 1 in chat", ('{"prompt": "q", "completion": "a"}',)),
}  # fmt: skip


@pytest.fixture
def standing(registry: Registry, tiny_base: Base, tmp_path: Path) -> Version:
    """A version that is in use before the fault: acme/tiny@1, which production points to."""
    return _publish(registry, tiny_base, tmp_path / "standing")


def _publish(registry: Registry, base: Base, folder: Path, adapter: str = "acme/tiny") -> Version:
    """A pair for one matrix of the tiny base, as `adapter`'s next version."""
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    pair = {name.format("A"): np.ones((2, 64), np.float32), name.format("B"): np.zeros((64, 2), np.float32)}
    save_file(pair, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return registry.publish(
        NewVersion(
            adapter=adapter,
            folder=folder,
            base=base,
            method="lora",
            manifest={},
            metrics={},
            actor="test",
            alias="production",
        )
    )


def state(registry: Registry) -> dict[str, Any]:
    """Everything of a registry that a run may change, byte for byte; what was only staged is collected first."""
    registry.collect(older_than=-1.0)
    blobs = sorted(path for path in registry.home.blobs.rglob("*") if path.is_file())
    adapters = registry.adapters()
    return {
        "versions": registry.versions(),
        "aliases": [registry.aliases(adapter) for adapter in adapters],
        "history": [registry.history(adapter) for adapter in adapters],
        "blobs": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in blobs},
        "damaged": registry.verify(),
    }


@contextmanager
def caught(registry: Registry, code: str, says: str) -> Iterator[None]:
    """What happens inside must fail with this code and message, and leave the registry as it was."""
    before = state(registry)
    assert (len(before["versions"]), before["damaged"]) == (1, [])
    with pytest.raises(TuneryError, match=says) as error:
        yield
    assert error.value.code == code, error.value.message
    assert state(registry) == before


@pytest.mark.parametrize("name", DATA)
def test_a_fault_in_the_data_is_caught_before_there_is_a_job(
    name: str, train: Train, registry: Registry, standing: Version, data: Path, tmp_path: Path
) -> None:
    fault = DATA[name]
    with data.open("ab") as file:
        file.writelines(row if isinstance(row, bytes) else row.encode() + b"\n" for row in fault.rows)
    held_out = tmp_path / "val.jsonl" if fault.held_out else None
    if held_out is not None:
        held_out.write_text("".join(row + "\n" for row in fault.held_out if row))
    with caught(registry, fault.code, fault.says):
        train("lora", validation=held_out, alias="production", **fault.parameters)
    assert registry.jobs() == []


def test_a_template_that_never_ends_a_turn_is_caught(
    train: Train, registry: Registry, standing: Version, base_with: Callable[..., Base]
) -> None:
    base = base_with(NO_END, eos_token=None)
    with caught(registry, "end_of_turn_not_trained", r"rows.jsonl:1: .*does not end in a token that stops"):
        train("lora", base=base, max_steps=1)
    assert registry.jobs() == []


def test_a_parent_of_another_base_is_caught(
    train: Train, registry: Registry, standing: Version, base_with: Callable[..., Base]
) -> None:
    other = base_with(CHATML + " ")
    with caught(
        registry, "wrong_base", r"acme/tiny@1 was trained on tiny .*, not on other .*continue on the same base"
    ):
        train("lora", parent="acme/tiny@1", base=other, max_steps=1)
    assert registry.jobs() == []


def times_from_step_three(factor: float, events: list[JobEvent], monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply the loss by `factor` once two steps are done."""
    healthy = Supervised.loss

    def loss(self: Supervised, model: torch.nn.Module, batch: Any) -> StepLoss:
        begun = any(isinstance(each, StepCompleted) and each.step == 2 for each in events)
        whole = healthy(self, model, batch)
        return dataclasses.replace(whole, total=whole.total * (factor if begun else 1.0))

    monkeypatch.setattr(Supervised, "loss", loss)


@pytest.mark.parametrize(
    ("factor", "code", "says"),
    [(math.nan, "loss_not_finite", "is nan"), (math.inf, "loss_not_finite", "is inf"), (1e6, "loss_exploded", "above")],
)
def test_a_loss_that_goes_wrong_stops_the_run_at_that_step_and_names_its_rows(
    factor: float,
    code: str,
    says: str,
    train: Train,
    registry: Registry,
    standing: Version,
    monkeypatch: pytest.MonkeyPatch,
    events: list[JobEvent],
) -> None:
    times_from_step_three(factor, events, monkeypatch)
    with caught(
        registry,
        code,
        rf"step 3: the loss .*{says}.*nothing was published.*The step's rows are (rows\.jsonl:\d+(, |: )){{4}}",
    ):
        train("lora", max_steps=6)
    assert [each.kind for each in events if each.kind in ("step", "failed")] == ["step", "step", "failed"]
    assert registry.jobs()[0].state == "failed"


def ask_for_too_much() -> None:
    torch.empty(2**50)


def find_no_memory() -> None:
    raise MemoryError


def find_no_memory_on_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def wrap_what_found_no_memory() -> None:
    try:
        find_no_memory()
    except MemoryError as error:
        raise ValueError("the rows could not be read") from error


@pytest.mark.parametrize(
    ("fail", "says"),
    [
        (ask_for_too_much, r"4503599\.63 GB at once could not be had; lower micro_batch_size, max_length or r"),
        (find_no_memory, "an allocation failed; lower micro_batch_size, max_length or r, or choose qlora"),
        (find_no_memory_on_the_gpu, "an allocation failed; lower"),
        (wrap_what_found_no_memory, "an allocation failed; lower"),
    ],
)
def test_an_allocation_that_fails_in_a_step_ends_the_job_for_want_of_memory(
    fail: Callable[[], None],
    says: str,
    train: Train,
    registry: Registry,
    standing: Version,
    monkeypatch: pytest.MonkeyPatch,
    events: list[JobEvent],
) -> None:
    monkeypatch.setattr(Supervised, "loss", lambda *_: fail())
    with caught(registry, "out_of_memory", rf"^job-\w+ ran out of memory: {says}"):
        train("lora", max_steps=1)
    last = events[-1]
    assert isinstance(last, Failed)
    assert (last.code, last.needed_bytes) == ("out_of_memory", UNSET)
    assert registry.jobs()[0].error == last.error


def test_an_error_that_nobody_foresaw_is_an_internal_error(
    train: Train, registry: Registry, monkeypatch: pytest.MonkeyPatch, events: list[JobEvent]
) -> None:
    class Foreign(RuntimeError):
        code = "e3q8"

    def fail(*_: object) -> None:
        raise Foreign("no such layer")

    monkeypatch.setattr(Supervised, "loss", fail)
    with pytest.raises(Foreign):
        train("lora", max_steps=1)
    assert events[-1] == Failed(error="Foreign: no such layer", code="internal_error")
    assert registry.jobs()[0].state == "failed"


class Killed(BaseException):
    """Stands for the process's end."""


def change_rows(data: Path) -> None:
    write_rows(data, 44)


def cut_file(data: Path) -> None:
    data.write_bytes(data.read_bytes()[:-30])


def change_one_letter(data: Path) -> None:
    data.write_text(data.read_text().replace("item 7", "item X"))


@pytest.mark.parametrize("change", [change_rows, cut_file, change_one_letter])
def test_data_that_changed_is_caught_on_resume(
    change: Callable[[Path], None], train: Train, registry: Registry, standing: Version, data: Path
) -> None:
    def die(event: JobEvent) -> None:
        if isinstance(event, StepCompleted) and event.step == 2:
            raise Killed

    with pytest.raises(Killed):
        train("lora", max_steps=4, checkpoint_every=1, on_event=die)
    change(data)
    job = registry.jobs()[0]
    with caught(registry, "resume_mismatch", rf"(?s){job.id} cannot go on as it began.*data\[0\]\.sha256: "):
        resume(
            job.id, registry=registry, plugins=load_plugins(allow=(), without=("gates",)), on_event=lambda event: None
        )


# -- a full disk ------------------------------------------------------------------------------------------------------


def no_file_over(size: int) -> None:
    """From now on the kernel refuses to let a file grow over `size` bytes, as it refuses to fill a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def room_afterwards() -> Iterator[None]:
    """Files may grow again behind this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("kind", "size", "parameters", "says"),
    [
        ("step", 100_000, {"eval_every": 1, "checkpoint_every": 0}, "best.safetensors of job-"),
        ("step", 100_000, {"eval_every": 0, "checkpoint_every": 1}, "checkpoint of job-"),
        ("step", 600_000, {"eval_every": 0, "checkpoint_every": 1}, "checkpoint of job-"),
        ("chosen", 100_000, {"eval_every": 0, "checkpoint_every": 0}, "job-"),
    ],
    ids=["the best weights", "a checkpoint's weights", "a checkpoint's state", "the finished files"],
)
def test_a_disk_that_fills_while_a_run_writes_is_caught_and_the_run_goes_on_later(
    kind: str,
    size: int,
    parameters: dict[str, Any],
    says: str,
    train: Train,
    registry: Registry,
    standing: Version,
) -> None:
    def fill(event: JobEvent) -> None:
        if isinstance(event, StepCompleted | CheckpointChosen) and event.kind == kind and event.step > 1:
            no_file_over(size)

    says = rf"the disk is full: {says}.*free some space.*--resume job-"
    with caught(registry, "disk_full", says), room_afterwards():
        train("full", max_steps=3, patience=0, on_event=fill, **parameters)
    job = registry.jobs()[0]
    again = resume(
        job.id, registry=registry, plugins=load_plugins(allow=(), without=("gates",)), on_event=lambda event: None
    )
    assert again.digest == train("full", max_steps=3, patience=0, **parameters).digest


@pytest.mark.parametrize("point", ["the files", "the database"])
def test_a_disk_that_fills_while_a_version_is_published_is_caught(
    point: str, train: Train, registry: Registry, standing: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Registry.publish

    def no_more_pages(connection: Any, record: Any, proxy: Any) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")

    def publish_on_a_full_disk(self: Registry, *arguments: Any, **more: Any) -> Version:
        if point == "the files":
            no_file_over(100_000)
        else:
            event.listen(self._database._engine, "checkout", no_more_pages)
            arguments[0].manifest.update(filler="x" * 50_000)
        return publish(self, *arguments, **more)

    monkeypatch.setattr(Registry, "publish", publish_on_a_full_disk)
    with caught(registry, "disk_full", r"disk is full.*nothing was changed"), room_afterwards():
        train("full", max_steps=1, alias="production")
    assert registry.resolve("acme/tiny@production") == standing
