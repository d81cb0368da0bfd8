"""Whatever else happens, every request that finishes equals itself run alone through PEFT, all
finish, and all is released.

Schedules are drawn at random: requests of all kinds on adapters of all kinds, tenants, cancels, loads, pins, unloads
and moving aliases, in an engine with too little memory for adapters and for the KV cache. Loads and the clock advance
by steps, so that an example can be replayed.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st
from torch import nn

from tests.gateway.engine.adapters.residency_harness import ManualExecutor
from tests.gateway.engine.hypothesis_settings import often
from tests.gateway.engine.peft_oracle import (
    TOLERANCE,
    Engine,
    assert_alone,
    assert_near,
    assert_scored,
    make_adapter,
    make_base,
    prompt,
    request,
    with_adapter,
)
from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter, composition_digest
from tunery.gateway.engine.messages import Cancel, Embed, Embedded, Failed, Generate, Load, Loaded, Token, Unload
from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.gateway.engine.scheduling.admission import STARVED_AFTER

KINDS: list[dict[str, Any]] = [
    {"r": 1, "lora_alpha": 1},
    {"r": 4},
    {"r": 5, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    {"r": 16, "lora_alpha": 8},
    {"r": 4, "use_dora": True},
    {"r": 3, "modules_to_save": ["norm", "input_layernorm"]},
    {"r": 2, "trainable_token_indices": list(range(40, 60))},
]
PLAIN = 4
"""How many of them can be composed, from the first on."""
STREAMS = [prompt(90, seed=seed) for seed in range(3)]
STEPS_EACH = 300
"""More steps than any request can need for itself: 90 tokens one at a time, 25 more, loads, and slices of others."""


# -- the world: made once ---------------------------------------------------------------------------------------------


@functools.cache
def world() -> tuple[Path, tuple[AdapterSource, ...]]:
    """A base, and an adapter of each kind, all under the same name and number."""
    folder = Path(tempfile.mkdtemp(prefix="tunery-schedules-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    base = make_base(folder / "base", "llama")
    return base, tuple(make_adapter(base, folder / str(i), seed=i, size=0.08, **kind) for i, kind in enumerate(KINDS))


@functools.cache
def size_of(number: int) -> int:
    """Bytes of an adapter in memory."""
    base, adapters = world()
    engine = Engine.on(base)
    engine.core.handle(Load("size", adapters[number]))
    engine.core.run_until_idle()
    return engine.core.residency.bytes


_MODELS: dict[str, nn.Module] = {}


def oracle(composition: tuple[WeightedAdapter, ...]) -> nn.Module:
    """PEFT on the base, once per composition."""
    digest = composition_digest(composition)
    if digest not in _MODELS:
        _MODELS[digest] = with_adapter(world()[0], "none", composition)
    return _MODELS[digest]


_TEXTS: dict[bytes, list[int]] = {}


def text_alone(asked: Generate, kernels: str) -> list[int]:
    """What a request with a seed says when it has an engine of its own."""
    key = msgspec.json.encode((msgspec.structs.replace(asked, id="", tenant=""), kernels))
    if key not in _TEXTS:
        engine = Engine.on(world()[0], kernels=kernels, prefix_cache=False)
        _TEXTS[key] = [token.token for token in engine.run([asked])[asked.id]]
    return _TEXTS[key]


# -- what is drawn ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedRequest:
    """A request: the beginning of a stream, on adapters by number with weights (or whatever the
    alias is), for a tenant."""

    stream: int
    length: int
    count: int
    parts: tuple[tuple[int, float], ...] | None
    tenant: str
    kind: Literal["greedy", "seeded", "scored", "stopped", "mean", "last"]
    seed: int


@dataclass(frozen=True)
class PlannedAction:
    """Something else: `number` is of an adapter, of a request to cancel, or of steps."""

    kind: Literal["steps", "cancel", "load", "pin", "unload", "move"]
    number: int


@dataclass(frozen=True)
class Plan:
    """An engine's settings and what happens to it. `fit` are the adapters that fit in memory together."""

    fit: int
    pages: int
    settings: dict[str, Any]
    seconds: float
    loads: int
    happenings: list[PlannedRequest | PlannedAction] = field(default_factory=list)


single = st.integers(0, len(KINDS) - 1).map(lambda number: ((number, 1.0),))
composed = st.lists(
    st.tuples(st.integers(0, PLAIN - 1), st.sampled_from([0.5, 1.0, -0.5, 1.5])),
    min_size=1,
    max_size=2,
    unique_by=lambda part: part[0],
).map(tuple)
asks = st.builds(
    PlannedRequest,
    stream=st.integers(0, len(STREAMS) - 1),
    length=st.integers(1, 40) | st.sampled_from([15, 16, 17, 32, 33, 48, 90]),
    count=st.integers(1, 25),
    parts=st.just(()) | single | composed | st.none(),
    tenant=st.sampled_from("abc"),
    kind=st.sampled_from(["greedy", "greedy", "greedy", "seeded", "scored", "stopped", "mean", "last"]),
    seed=st.integers(0, 2),
)
acts = st.builds(
    PlannedAction,
    kind=st.sampled_from(["steps", "steps", "steps", "cancel", "load", "pin", "unload", "move"]),
    number=st.integers(0, 12),
)
plans = st.builds(
    Plan,
    fit=st.integers(1, len(KINDS)),
    pages=st.integers(8, 20),
    settings=st.fixed_dictionaries(
        {
            "max_batch": st.integers(1, 6),
            "token_budget": st.sampled_from([1, 5, 16, 33, 64, 512]),
            "prefix_cache": st.booleans(),
            "adapter_ram": st.sampled_from([0, 10_000_000]),
            "tenant_weights": st.sampled_from([{}, {"a": 3.0}, {"b": 0.25, "c": 2.0}]),
        }
    ),
    seconds=st.sampled_from([0.001, 0.1, 0.6]),
    loads=st.integers(1, 3),
    happenings=st.lists(asks | acts, min_size=1, max_size=25),
)


# -- running it -------------------------------------------------------------------------------------------------------


class ScheduleRun:
    """A plan under way: what was asked and not cancelled, and what the engine must not say any more."""

    def __init__(self, plan: Plan, kernels: str) -> None:
        self.base, self.adapters = world()
        self.plan, self.kernels = plan, kernels
        self.now = 0.0
        sizes = sorted((size_of(number) for number in range(len(KINDS))), reverse=True)
        budget = sum(sizes[: plan.fit])
        self.engine = Engine.on(
            self.base,
            clock=lambda: self.now,
            kernels=kernels,
            adapter_budget=budget,
            kv_tokens=16 * plan.pages,
            **plan.settings,
        )
        self.core = self.engine.core
        self.executor = ManualExecutor()
        loader: Any = self.core.residency._loader
        loader._executor = self.executor
        self.asked: dict[str, Generate | Embed] = {}
        self.silent: dict[str, int] = {}  # cancelled requests, and how much they had said
        self.loading: set[str] = set()
        self.pinned = False
        self.alias = 0
        self.count = 0

    def run(self) -> None:
        """Everything that was planned, then steps until all is done."""
        for happening in self.plan.happenings:
            if isinstance(happening, PlannedRequest):
                self.send_request(happening)
            else:
                getattr(self, happening.kind)(happening.number)
        # What can never fit together is refused once somebody has waited too long for it, by the clock; and with too
        # little room a request may be taken out after every token and be computed from its beginning.
        limit = (STEPS_EACH + int(2 * STARVED_AFTER / self.plan.seconds)) * (len(self.asked) + 1)
        limit += sum(_slices(one) for one in self.asked.values())
        while not self.core.idle:
            self.step()
            limit -= 1
            assert limit, "somebody starves"
        self.check()

    def name(self) -> str:
        self.count += 1
        return str(self.count)

    def send_request(self, planned: PlannedRequest) -> None:
        parts = ((self.alias, 1.0),) if planned.parts is None else planned.parts
        composition = tuple(WeightedAdapter(self.adapters[number], weight) for number, weight in parts)
        name, tokens = self.name(), STREAMS[planned.stream][: planned.length]
        made: Generate | Embed
        if planned.kind in ("mean", "last"):
            made = Embed(id=name, prompt=tokens, pooling=planned.kind, composition=composition, tenant=planned.tenant)
        else:
            sampling: dict[str, dict[str, Any]] = {
                "seeded": {"temperature": 0.8, "top_p": 0.9, "seed": planned.seed},
                "scored": {"prompt_logprobs": 1},
                "stopped": {
                    "stop_token_ids": tuple(range(60 * planned.seed, 60 * planned.seed + 60)),
                    "min_tokens": planned.seed,
                },
            }
            plain = request(
                name,
                tokens,
                max_tokens=min(planned.count, 16 * self.plan.pages - planned.length),
                **sampling.get(planned.kind, {}),
            )
            made = msgspec.structs.replace(plain, composition=composition, tenant=planned.tenant)
        self.asked[name] = made
        self.core.handle(made)

    def steps(self, number: int) -> None:
        for _ in range(number):
            self.step()

    def cancel(self, number: int) -> None:
        name = str(number)
        self.core.handle(Cancel(name))
        if name in self.asked and not self.ended(name):
            self.silent[name] = len(self.engine.answers().get(name, ()))

    def load(self, number: int, *, pin: bool = False) -> None:
        self.loading.add(name := self.name())
        self.core.handle(Load(name, self.adapters[number % len(KINDS)], pin=pin))

    def pin(self, number: int) -> None:
        self.pinned = True
        self.load(number, pin=True)

    def unload(self, number: int) -> None:
        self.core.handle(Unload(self.name(), self.adapters[number % len(KINDS)].digest))

    def move(self, number: int) -> None:
        self.alias = number % len(KINDS)

    def step(self) -> None:
        for _ in range(self.plan.loads):
            if self.executor.tasks:
                self.executor.run()
        self.core.step()
        self.now += self.plan.seconds
        assert self.core.residency.bytes <= self.core.residency.budget
        assert len(self.core.scheduler.running) <= self.plan.settings["max_batch"]

    # -- what must be true --------------------------------------------------------------------------------------------

    def ended(self, name: str) -> bool:
        answered = self.engine.answers().get(name, [])
        others = {event.id for event in self.engine.events if isinstance(event, Failed | Embedded)}
        return name in others or bool(answered and answered[-1].finish)

    def check(self) -> None:
        answers = self.engine.answers()
        vectors = {event.id: event.vector for event in self.engine.events if isinstance(event, Embedded)}
        failures = {event.id: event for event in self.engine.events if isinstance(event, Failed)}
        for name, asked in self.asked.items():
            note(f"{name}: {composition_digest(asked.composition)[:8]} {len(asked.prompt)} tokens")
            if name in self.silent:
                assert len(answers.get(name, ())) == self.silent[name]
            elif name in failures:
                self.check_failure(asked, failures[name])
            elif isinstance(asked, Embed):
                self.check_vector(asked, vectors[name])
            else:
                self.check_text(asked, answers[name])
        self.check_free()

    def check_failure(self, asked: Generate | Embed, failed: Failed) -> None:
        """Only what cannot fit may fail: a composition, or whatever there was beside what was pinned."""
        needed = sum(size_of(self.adapters.index(part.source)) for part in asked.composition)
        assert failed.code == "adapter_too_large"
        assert needed > self.core.residency.budget or self.pinned

    def check_vector(self, asked: Embed, vector: list[float]) -> None:
        with torch.no_grad():
            states = oracle(asked.composition)(
                input_ids=torch.tensor([asked.prompt]), output_hidden_states=True
            ).hidden_states[-1][0]
        expected = states.mean(0) if asked.pooling == "mean" else states[-1]
        torch.testing.assert_close(torch.tensor(vector), expected, rtol=TOLERANCE, atol=TOLERANCE)

    def check_text(self, asked: Generate, tokens: list[Token]) -> None:
        model = oracle(asked.composition)
        if asked.sampling.seed is None:
            assert_alone(model, asked, tokens)
        else:
            assert_scored(model, asked, tokens)
            assert [token.token for token in tokens] == text_alone(asked, self.kernels)
        scores = tokens[0].prompt_scores
        assert len(scores) == (0 if asked.sampling.prompt_logprobs is None else len(asked.prompt) - 1)
        if scores:
            assert_near(model, asked.prompt, [one.logprob for one in scores], name=asked.id)

    def check_free(self) -> None:
        """Nobody holds anything, every load was answered, and unloading gives all memory back."""
        stats = self.core.stats()
        assert (stats.running, stats.waiting, stats.kv_used) == (0, 0, 0)
        assert not any(one.running for one in stats.resident)
        assert self.loading <= {event.id for event in self.engine.events if isinstance(event, Loaded | Failed)}
        for number in range(len(KINDS)):
            self.unload(number)
        while self.executor.tasks:  # loads whose requests were cancelled
            self.executor.run()
        self.core.residency.poll()
        assert self.core.residency.bytes == 0


def _slices(one: Generate | Embed) -> int:
    """The steps that a request takes at the most when every token has to be earned by computing all
    before it, one a step."""
    count = one.sampling.max_tokens if isinstance(one, Generate) else 1
    return (len(one.prompt) + count) * count


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(tied|tying).*:UserWarning")
@pytest.mark.skipif(load_kernels() is None, reason="the native kernels were not built, or this CPU lacks AVX-512 BF16")
@often(60)
@given(plans)
def test_every_request_equals_itself_alone_whatever_the_schedule(plan: Plan) -> None:
    ScheduleRun(plan, "auto").run()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(tied|tying).*:UserWarning")
@often(15)
@given(plans)
def test_every_request_equals_itself_alone_without_the_kernels(plan: Plan) -> None:
    ScheduleRun(plan, "torch").run()
